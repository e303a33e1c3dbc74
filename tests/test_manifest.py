"""The manifest: refused tables and their messages, and the split by person."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stored_cohort import sessions

from resdm_suite.cohorts.manifest import (
    COLUMNS,
    SCHEMA,
    SPLITS,
    ManifestError,
    check_leakage,
    read_manifest,
    write_manifest,
)
from resdm_suite.cohorts.splits import split_card, split_digest, split_people
from resdm_suite.profiles import SplitConfig

DOCUMENTED = Path(__file__).resolve().parents[1] / "data_manifests"


def test_a_manifest_survives_writing_and_reading(table):
    path = table()
    frame = read_manifest(path)
    assert tuple(frame.columns) == COLUMNS
    assert Path(frame["t1w"][0]).is_absolute()
    assert "scans/0_0_T1w.nii.gz" in path.read_text().splitlines()[1].split(",")  # relative in the file
    before = path.read_bytes()
    write_manifest(frame.sample(frac=1, random_state=0), path)
    assert path.read_bytes() == before
    assert frame["amyloid_status"].isna().all()
    assert frame["age"].dtype == float


def test_a_hand_written_table_may_leave_optional_columns_out(table, tmp_path):
    first = read_manifest(table()).iloc[0]
    path = tmp_path / "own.csv"
    path.write_bytes(
        "\ufeffperson,session,age,sex,t1w,tau,tau_tracer\r\n"
        f"sub-1,ses-1, 71.5 ,F,{first['t1w']},{first['t1w']},18FAV1451\r\n\r\n".encode()
    )
    frame = read_manifest(path)
    assert frame.loc[0, ["age", "sex", "diagnosis", "amyloid", "split"]].tolist() == [71.5, "F", "", "", ""]
    assert np.isnan(frame.loc[0, "mmse"])


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match=r"m\.csv: no such manifest; make one with `resdm manifest`"):
        read_manifest(tmp_path / "m.csv")


def test_many_missing_files_are_counted_and_the_first_named(table):
    path = table()
    frame = read_manifest(path)
    for cell in frame["t1w"]:
        Path(cell).unlink()
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    lines = str(error.value).splitlines()
    assert len(frame) > 5
    assert len(lines) == 6
    assert lines[-1] == f"… and {len(frame) - 5} more, {len(frame)} in all"
    read_manifest(path, files=False)


def test_the_dictionary_of_columns_is_that_of_the_schema():
    documented = pd.read_csv(DOCUMENTED / "columns.csv", keep_default_na=False).set_index("column")
    assert tuple(documented.index) == COLUMNS
    for name, column in SCHEMA.columns.items():
        row = documented.loc[name]
        assert row["description"] == column.description
        assert row["values"] == (column.checks[0].error if column.checks else "")
        assert row["unit"] == (column.metadata or {}).get("unit", "")
        assert (row["required"] == "yes") == column.required
    template = read_manifest(DOCUMENTED / "template.csv", files=False)
    assert len(template) == 3


# ── the split ─────────────────────────────────────────────────────────────────────────────────────


def test_the_split_is_a_function_of_people_and_seed_alone():
    frame = sessions(80)
    one = split_people(frame, SplitConfig(), 3).set_index(["person", "session"])["split"]
    shuffled = frame.sample(frac=1, random_state=1)
    other = split_people(shuffled, SplitConfig(), 3).set_index(["person", "session"])["split"]
    pd.testing.assert_series_equal(one.sort_index(), other.sort_index())
    third = split_people(frame, SplitConfig(), 4).set_index(["person", "session"])["split"]
    assert 0.1 < (one != third).mean() < 0.7
    check_leakage(one.reset_index(), "here")


@pytest.mark.parametrize(
    ("people", "split"), [(80, SplitConfig()), (37, SplitConfig(0.3, 0.2)), (5, SplitConfig()), (1274, SplitConfig())]
)
def test_every_split_gets_its_share(people, split):
    drawn = split_people(sessions(people), split, 0).drop_duplicates("person")["split"].value_counts()
    assert set(drawn.index) == set(SPLITS)
    assert abs(drawn["test"] - split.test * people) <= 0.5  # the paper tests 254 of its 1274 sets
    assert abs(drawn["validation"] - split.validation * people) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_every_stratum_is_shared_out(seed):
    """Of each diagnosis × sex with both tracers, a fifth is tested, to within a person or so; so are rare strata."""
    frame = split_people(sessions(300, seed), SplitConfig(), seed).drop_duplicates("person")
    both = (frame["amyloid"] != "") & (frame["tau"] != "")
    for _, stratum in frame[both].groupby(["diagnosis", "sex"]):
        assert abs((stratum["split"] == "test").sum() - 0.2 * len(stratum)) <= 1
        assert abs((stratum["split"] == "validation").sum() - 0.1 * len(stratum)) <= 2
    rare = frame[~both]
    assert 0.05 < (rare["split"] == "test").mean() < 0.4


def test_anybody_can_become_a_test_person():
    frame = sessions(20)
    often = sum(split_people(frame, SplitConfig(), seed)["split"].eq("test").to_numpy() for seed in range(60))
    assert often.min() > 0
    assert often.max() < 35


def test_too_few_people_are_refused():
    with pytest.raises(ManifestError, match="2 people are too few: nobody is left for"):
        split_people(sessions(2), SplitConfig(), 0)


@pytest.mark.parametrize(("people", "folds"), [(60, 5), (37, 4), (6, 3)])
def test_over_all_folds_everybody_is_tested_once(people, folds):
    frame = sessions(people)
    drawn = [split_people(frame, SplitConfig(folds=folds, fold=fold), 1) for fold in range(folds)]
    assert (sum((one["split"] == "test").astype(int) for one in drawn) == 1).all()
    for one in drawn:
        check_leakage(one, "here")
        count = one.drop_duplicates("person")["split"].value_counts()
        assert set(count.index) == set(SPLITS)
        assert abs(count["test"] - people / folds) < 1
        assert abs(count["validation"] - 0.1 * people) <= 1
    both = drawn[0].drop_duplicates("person")
    for _, stratum in both[(both["amyloid"] != "") & (both["tau"] != "")].groupby(["diagnosis", "sex"]):
        assert abs((stratum["split"] == "test").sum() - len(stratum) / folds) <= 1
    again = split_people(frame.sample(frac=1, random_state=2), SplitConfig(folds=folds), 1).sort_index()
    pd.testing.assert_series_equal(again["split"], drawn[0]["split"].sort_index())


def test_the_card_of_a_split_counts_and_names_nobody():
    frame = split_people(sessions(60), SplitConfig(folds=5, fold=2), 7)
    card = split_card(frame, SplitConfig(folds=5, fold=2), 7)
    assert card["digest"] == split_digest(frame.sample(frac=1, random_state=0))
    assert card["drawn"] == {"seed": 7, "folds": 5, "fold": 2, "validation": 0.1}
    assert card["people"] == frame.drop_duplicates("person")["split"].value_counts()[list(SPLITS)].to_dict()
    assert sum(sum(row.values()) for row in card["strata"].values()) == 60
    assert all(stratum.split()[1] in ("++", "+-", "-+") for stratum in card["strata"])
    assert "sub-" not in json.dumps(card)
    lines = "".join(
        f"{p}\t{s}\n" for p, s in sorted(set(frame[["person", "split"]].itertuples(index=False, name=None)))
    )
    assert card["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    swapped = frame.assign(split=frame["split"].replace({"test": "train", "train": "test"}))
    assert split_digest(swapped) != card["digest"]
    assert split_card(swapped, SplitConfig(), 7)["drawn"] == {"seed": 7, "test": 0.2, "validation": 0.1}
    assert split_card(swapped, None, 7)["drawn"] is None
