"""A table in the columns of the manifest: read as a spreadsheet saves it, with windows and splits as everywhere."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
from mock_sources import write_csv_cohort

from resdm_suite.cohorts.assembly import make_manifest
from resdm_suite.cohorts.manifest import LeakageError, ManifestError, read_manifest
from resdm_suite.cohorts.readers.table import build_manifest
from resdm_suite.profiles import CohortConfig, Config, SplitConfig


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    return write_csv_cohort(tmp_path_factory.mktemp("mock"), heads=False)


@pytest.fixture
def config(tmp_path):
    return Config(profile="tiny", cohort=CohortConfig(kind="other", source="csv"), root=tmp_path)


@pytest.fixture
def changed(mock):
    """``changed(split=[...])``: the table with other columns, beside the first, for its paths are relative."""

    def make(**columns):
        path = mock.root.with_name("changed.csv")
        pd.read_csv(mock.root).assign(**columns).to_csv(path, index=False)
        return path

    return make


def test_the_table_becomes_the_manifest(mock, config):
    found = build_manifest(mock.root, config)
    mock.check(found)
    row = found.manifest.set_index("person").loc["sub-own04"]
    assert row[["age", "sex", "amyloid_days", "tau_tracer"]].tolist() == [62.5, "F", -200.0, "18FAV1451"]
    assert row["t1w"] == str(mock.root.parent / "scans" / "04_0" / "t1.nii.gz")
    make_manifest(config, mock.root)
    stored = read_manifest(config.manifest)
    assert stored["t1w"].tolist() == found.manifest["t1w"].tolist()
    assert stored.groupby("split")["person"].nunique().to_dict() == {"test": 3, "train": 9, "validation": 1}


def test_a_given_split_is_used_and_may_be_drawn_again(changed, config):
    own = ["train"] * 9 + ["validation"] * 2 + ["test"] * 4
    path = changed(split=own)
    make_manifest(config, path)
    stored = read_manifest(config.manifest).set_index(["person", "session"])["split"]
    assert stored[("sub-own13", "ses-1")] == "test"
    assert stored.value_counts().to_dict() == {"train": 8, "test": 4, "validation": 2}  # one is out of the window
    make_manifest(config, path, draw=True)
    drawn = read_manifest(config.manifest).groupby("split")["person"].nunique().to_dict()
    assert drawn == {"test": 3, "train": 9, "validation": 1}


def test_an_incomplete_split_is_drawn_for_all_and_noted(changed, config):
    path = changed(split=["train"] * 9 + [""] * 6)
    found = build_manifest(path, config)
    assert found.notes == [f"{path}: 6 of 15 sessions have no split; it is drawn for all"]
    assert found.manifest["split"].eq("").all()


@pytest.mark.parametrize("label", ["AV45", "18FMK6240", "18FAV45"])
def test_a_tracer_that_the_profile_does_not_name_is_refused(changed, mock, config, label):
    """No cut-off is known for it, it may be on another scale, or it is amyloid's in the column of tau."""
    table = pd.read_csv(mock.root)
    line = int(table.index[table["tau"].notna()][0])
    labels = table["tau_tracer"].where(table.index != line, label)
    with pytest.raises(ManifestError) as error:
        build_manifest(changed(tau_tracer=labels), config)
    message = str(error.value)
    assert f"changed.csv: row {line + 2} ({table['person'][line]} ses-1), tau_tracer: found '{label}'" in message
    assert "expected 18FAV1451; write that label, or name the tracer in cohort.tracers" in message


def test_leakage_in_the_table_is_refused(changed, config):
    table = pd.read_csv(changed())
    again = (table["person"] == "sub-own02") & (table["session"] == "ses-3")
    split = again.map({True: "test", False: "train"})
    path = changed(split=split)
    with pytest.raises(LeakageError, match=r"changed\.csv: 1 person is in more than one split: sub-own02 in test and"):
        make_manifest(config, path)
    make_manifest(config, path, draw=True)


def test_folds_beside_a_split_of_the_table_are_refused(changed, config):
    folds = dataclasses.replace(config, cohort=dataclasses.replace(config.cohort, split=SplitConfig(folds=3)))
    numbers = pd.factorize(pd.read_csv(changed())["person"])[0] % 3
    path = changed(split=[("train", "validation", "test")[number] for number in numbers])
    with pytest.raises(ManifestError, match=r"came with the data, so cohort\.split\.folds would have no effect"):
        make_manifest(folds, path)
    make_manifest(folds, path, draw=True)


def test_a_split_that_leaves_nobody_to_test_on(changed, config):
    with pytest.raises(ManifestError, match=r"leaves nobody for validation, test; .*--draw-split"):
        make_manifest(config, changed(split="train"))
    assert not config.manifest.exists()


def test_one_person_has_one_sex_and_each_session_its_own_t1(changed, mock, config):
    table = pd.read_csv(mock.root)
    again = (table["person"] == "sub-own02") & (table["session"] == "ses-3")
    with pytest.raises(ManifestError, match=r"\(sub-own02 ses-3\), sex: found 'M', expected one sex in all sessions"):
        build_manifest(changed(sex=table["sex"].mask(again, "M")), config)
    first = table.loc[table["person"] == "sub-own02", "t1w"].iloc[0]
    with pytest.raises(ManifestError, match=r"sub-own02 ses-3: .* is the T1 of another session of the person; correct"):
        build_manifest(changed(t1w=table["t1w"].mask(again, first)), config)


def test_no_table_or_one_that_does_not_fit(changed, config, tmp_path):
    with pytest.raises(ManifestError, match=r"row 2 \(sub-own00 ses-1\), sex: found 'female', expected F, M"):
        build_manifest(changed(sex="female"), config)
    with pytest.raises(ManifestError, match=r"a folder; expected a table, by --root table\.csv"):
        build_manifest(tmp_path, config)
    with pytest.raises(ManifestError, match="no such table; data_manifests/template"):
        build_manifest(tmp_path / "people.csv", config)
