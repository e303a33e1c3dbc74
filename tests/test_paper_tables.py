"""The paper's printed tables: complete and tidy; test_claims computes their contradictions."""

from __future__ import annotations

import pytest

from resdm_suite.reporting.tables import read_paper


def test_table1_is_consistent():
    values = read_paper(1).set_index(["characteristic", "diagnosis", "statistic"])["value"]
    for diagnosis in ("AD", "MCI", "CN"):
        sexes = values["sex", diagnosis, "female"] + values["sex", diagnosis, "male"]
        assert sexes == values["sets", diagnosis, "count"]


@pytest.mark.parametrize(
    ("number", "row", "rows", "columns"), [(2, "method", 6, 6), (3, "variant", 4, 8), (4, "method", 7, 6)]
)
def test_tables_are_complete_and_plausible(number, row, rows, columns):
    table = read_paper(number)
    second = "status" if number == 4 else "tracer"
    assert len(table) == rows * columns
    assert not table.duplicated([row, second, "metric"]).any()
    assert (table.groupby(row)["mean"].size() == columns).all()
    assert set(table[second]) == {"amyloid", "tau"}
    assert table["mean"].between(0, 100).all()
    assert table["std"].between(0.1, 10).all()
    assert (table["unit"] == table["metric"].map({"psnr": "dB"}).fillna("%")).all()
    assert table.loc[table["printed_as"] == "Ours", row].unique().tolist() == ["ResDM"]


def test_the_full_model_of_table3_is_that_of_table2():
    two, three = read_paper(2), read_paper(3)
    keys = ["tracer", "metric", "mean", "std"]
    ours2 = two.loc[two["method"] == "ResDM", keys]
    ours3 = three.loc[(three["variant"] == "ResDM") & (three["metric"] != "acc"), keys]
    assert ours2.to_numpy().tolist() == ours3.to_numpy().tolist()
