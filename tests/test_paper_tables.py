"""The paper's printed tables: complete and tidy; test_claims computes their contradictions."""

from __future__ import annotations

import numpy as np
import pytest

from resdm_suite.reporting.tables import VARIANTS, printed_means, read_paper


def test_table1_is_consistent():
    values = read_paper(1).set_index(["characteristic", "diagnosis", "statistic"])["value"]
    for diagnosis in ("AD", "MCI", "CN"):
        sexes = values["sex", diagnosis, "female"] + values["sex", diagnosis, "male"]
        assert sexes == values["sets", diagnosis, "count"]
    means = values.xs("mean", level="statistic").unstack()
    assert means.loc["amyloid_suvr"].to_dict() == {"AD": 1.40, "MCI": 1.22, "CN": 1.12}
    assert means.loc["tau_suvr"].to_dict() == {"AD": 1.60, "MCI": 1.33, "CN": 1.18}


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


@pytest.mark.parametrize(("number", "keys"), [
    (2, {"method": "method", "tracer": "tracer"}), (3, {"method": "variant", "tracer": "tracer"}),
    (4, {"source": "method", "tracer": "status"}),
])  # fmt: skip
def test_printed_values_have_the_names_of_our_tables(number, keys):
    ours, printed = printed_means(number), read_paper(number)
    assert (
        ours[["paper", "paper_std", "metric"]].to_numpy().tolist()
        == printed[["mean", "std", "metric"]].to_numpy().tolist()
    )
    for name, column in keys.items():
        assert (
            ours[name].map(lambda value: VARIANTS.get(value, value) if number == 3 else value).equals(printed[column])
        )
    if number == 4:
        assert set(ours["target"]) == {"label"}
    else:
        assert (ours["region"] == np.where(ours["metric"] == "acc", "status", "whole")).all()


def test_an_unknown_table_is_named():
    with pytest.raises(FileNotFoundError, match=r"table9\.csv"):
        read_paper(9)
