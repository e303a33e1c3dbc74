"""A person in two splits, or a train person among the scores: every stage refuses as it reads, not the split alone."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_cells import run_cells
from stored_cohort import GRID, make_cohort, save
from stored_readings import make_age, make_status

from resdm.io import write_csv, write_json
from resdm_suite.apps import synthesis
from resdm_suite.apps.training import train_method
from resdm_suite.cohorts import assembly
from resdm_suite.cohorts.leakage import LeakageError, check_shared_scans, check_tested
from resdm_suite.cohorts.manifest import EMPTY, SPLITS, read_manifest, write_manifest
from resdm_suite.cohorts.matching import Cohort
from resdm_suite.cohorts.readers import bids
from resdm_suite.evaluation.conditioning import prompt_scores
from resdm_suite.evaluation.downstream import evaluate_status, fit_evaluators
from resdm_suite.evaluation.image_quality import read_index, read_scores, score_method, score_people
from resdm_suite.evaluation.readings import read_readings, readings_path
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.preprocessing import volumes
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.reporting.cases import regional_comparison, shown_cases
from resdm_suite.reporting.tables import read_trainings

WHO = "sub-0006"  # a training person


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A stored cohort with scores, as the stages leave it."""
    config, index = make_cohort(tmp_path_factory.mktemp("stored"), {"ResDM": 0.3, "Base": 0.5}, people=6)
    for method in ("ResDM", "Base"):
        score_method(config, method)
    for record in config.work.rglob(".record.json"):  # else what is edited here is refused by its digest
        record.unlink()
    np.save(config.volumes / "cohort.npy", np.zeros((len(index), 3, *GRID.shape), np.float16))
    card = {"grid": {"shape": list(GRID.shape), "voxel_mm": GRID.voxel_mm}, "settings": config.digest("preprocess")}
    write_json(config.volumes / "cohort.json", card | {"digest": "abc"})
    return config


@pytest.fixture
def config(stored, tmp_path):
    """A copy of it."""
    shutil.copytree(stored.work, tmp_path / "work" / stored.profile)
    return dataclasses.replace(stored, root=tmp_path)


def index_of(config) -> pd.DataFrame:
    return pd.read_csv(config.volumes / "index.csv")


def _visit_in_another_split(config) -> None:
    """One more visit of a training person, and it is a test visit."""
    index = index_of(config)
    row = index[index["person"] == WHO].iloc[[0]].assign(session="ses-M099", split="test")
    write_csv(config.volumes / "index.csv", pd.concat([index, row], ignore_index=True))


STAGES = {
    "data set": lambda config: CohortDataset(config, "train"),
    "training": lambda config: train_method(config, "ResDM", progress=False),
    "reading the index": read_index,
    "scoring": lambda config: score_method(config, "ResDM"),
    "mean template": lambda config: score_people(config, "template"),
    "regional SUVR": lambda config: regional_suvr(config, "ResDM"),
    "fitting evaluators": lambda config: fit_evaluators(config, progress=False),
    "reading status": lambda config: evaluate_status(config),
    "stored scores": lambda config: read_scores(config, ["ResDM"]),
    "scores by prompt": lambda config: prompt_scores(config, "ResDM", ["factual"]),
    "Table 1": lambda config: run_cells("00", config, "00-02", "00-12", sessions=index_of(config)),
    "Table 2": lambda config: run_cells("04", config),
    "Table 3": lambda config: run_cells("05", config),
    "Figure 2": lambda config: shown_cases(
        config, pd.read_csv(config.predictions("ResDM") / "scores.csv").assign(method="ResDM"), ["ResDM"]
    ),
    "regional figure": regional_comparison,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_person_in_two_splits_stops_every_stage(config, stage):
    _visit_in_another_split(config)
    with pytest.raises(LeakageError, match=rf"1 person is in more than one split: {WHO} in test and train"):
        STAGES[stage](config)


def test_synthesis_reads_the_index_first(config, monkeypatch):
    monkeypatch.setattr(synthesis.Model, "of_profile", lambda *arguments: None)
    _visit_in_another_split(config)
    with pytest.raises(LeakageError, match=WHO):
        synthesis.synthesise_method(config, next(iter(config.methods)), progress=False)
    assert not list(config.predictions(next(iter(config.methods))).rglob("*_synth_*"))


def _manifest(config, splits) -> None:
    rows = []
    for number, split in enumerate(splits):
        row = EMPTY | {"person": "sub-1", "session": f"ses-{number}", "age": 70.0, "sex": "F", "split": split}
        rows.append(row | {"t1w": "t1.nii.gz", "tau": "tau.nii.gz", "tau_tracer": "18FAV1451"})
    for name in ("t1.nii.gz", "tau.nii.gz"):
        config.work.mkdir(parents=True, exist_ok=True)
        (config.work / name).touch()
    write_csv(config.manifest, pd.DataFrame(rows))


def test_so_do_the_stages_that_start_from_the_manifest(config):
    _manifest(config, ["train", "test"])
    before = (config.volumes / "index.csv").read_bytes()
    for stage in (lambda: read_manifest(config.manifest), lambda: volumes.preprocess(config, progress=False)):
        with pytest.raises(LeakageError, match=r"manifest\.csv: 1 person .* sub-1 in test and train\. .* draw the"):
            stage()
    assert (config.volumes / "index.csv").read_bytes() == before


def test_a_manifest_that_leaks_is_not_written(config, monkeypatch):
    _manifest(config, ["train", "train"])
    before, frame = config.manifest.read_bytes(), read_manifest(config.manifest)
    frame = pd.concat([frame.assign(split=split) for split in SPLITS])
    flow = pd.DataFrame({"step": ["found"]})
    monkeypatch.setattr(assembly, "split_people", lambda frame, split, seed: frame)
    monkeypatch.setattr(bids, "build_manifest", lambda root, config: Cohort(frame, flow, flow, []))
    with pytest.raises(LeakageError, match="sub-1"):
        assembly.make_manifest(config)
    assert config.manifest.read_bytes() == before
    assert not (config.work / "split.json").exists()


# ── the right split, the wrong people ─────────────────────────────────────────────────────────────


def _scored_as_well(path) -> None:
    frame = pd.read_csv(path)
    write_csv(path, pd.concat([frame, frame.iloc[[0]].assign(person=WHO)], ignore_index=True))


@pytest.mark.parametrize("stage", [read_trainings, read_scores])
def test_scores_of_a_train_person_make_no_table(config, stage):
    path = config.predictions("ResDM") / "scores.csv"
    _scored_as_well(path)
    with pytest.raises(LeakageError, match=rf"scores\.csv: 1 person is not of the test split .*: {WHO} in train"):
        stage(config, ["ResDM"])


@pytest.mark.parametrize("name", ["status", "age"])
def test_readings_of_a_train_person_make_no_table(config, name):
    frame = make_status({"real": 2.0}, people=5)[0] if name == "status" else make_age(0.5, people=5)
    write_csv(readings_path(config, name), frame)
    assert len(read_readings(config, name)) == len(frame)
    _scored_as_well(readings_path(config, name))
    with pytest.raises(LeakageError, match=rf"{name}\.csv: .*{WHO} in train"):
        read_readings(config, name)


def test_table3_refuses_calls_of_a_train_person(config):
    write_csv(readings_path(config, "status"), make_status({"ResDM": 1.0, "Base": 1.0}, people=7)[0])  # 6 is of train
    config = dataclasses.replace(config, methods=dict.fromkeys(["Base", "ResDM"], config.methods["ResDM"]))
    with pytest.raises(LeakageError, match=rf"status\.csv: .*{WHO} in train"):
        run_cells("05", config, without=("05-06", "05-07"))


def test_scores_alone_need_no_index(config):
    (config.volumes / "index.csv").unlink()
    assert len(read_scores(config, ["ResDM"]))


def test_many_are_counted():
    index = pd.DataFrame({"person": [f"sub-{i}" for i in range(8)], "split": "validation"})
    with pytest.raises(LeakageError, match=r"s\.csv: 8 people .*sub-4 in validation … and 3 more\. Tables are of test"):
        check_tested(index, index, "s.csv")
    check_tested(index.assign(person="sub-99"), index, "s.csv")  # of nobody in the index: stale, no leak


# ── one scan, two people ──────────────────────────────────────────────────────────────────────────


def _same(folder, kind):
    """Scans of two people, and what makes them one."""
    one, two = folder / "a.nii.gz", folder / ("b.nii" if kind == "unpacked" else "b.nii.gz")
    data = bytes(range(256)) * 40
    one.write_bytes(gzip.compress(data, mtime=0))
    if kind == "path":
        return one, folder / ".." / folder.name / "a.nii.gz"
    if kind.endswith("link"):
        (two.symlink_to if kind == "symbolic link" else two.hardlink_to)(one)
    else:
        two.write_bytes({"copy": one.read_bytes(), "compressed again": gzip.compress(data, 1, mtime=9),
                         "unpacked": data, "other": gzip.compress(data[::-1], mtime=0)}[kind])  # fmt: skip
    return one, two


KINDS = ["path", "symbolic link", "hard link", "copy", "compressed again", "unpacked", "other"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["t1w", "tau"])
def test_a_scan_of_two_people(tmp_path, kind, column):
    known = EMPTY | {"session": "ses-1", "age": 70.0, "sex": "F", "tau_tracer": "18FAV1451", "split": "train"}
    frame = pd.DataFrame([known | {"person": f"sub-{i}"} for i in (1, 2, 3)])
    for name in ("t1w", "tau"):
        frame[name] = [str(tmp_path / f"{name}{i}.nii") for i in range(3)]
        for number, path in enumerate(frame[name]):
            Path(path).write_bytes(f"{name}{number}".encode() * 2000)
    frame.loc[[0, 2], column] = [str(path) for path in _same(tmp_path, kind)]
    message = r"1 scan is shared by two people: .* of sub-1 ses-1 and .* of sub-3 ses-1\. A scan belongs to one person"
    if kind == "other":
        check_shared_scans(frame, "here", contents=True)
        return
    with pytest.raises(LeakageError, match="here: " + message):
        check_shared_scans(frame, "here", contents=True)
    if kind in ("path", "symbolic link", "hard link"):
        with pytest.raises(LeakageError, match=rf"m\.csv: {message}"):
            write_manifest(frame, tmp_path / "m.csv")
    else:
        write_manifest(frame, tmp_path / "m.csv")
    assert (frame.assign(person="sub-1").pipe(check_shared_scans, "here", contents=True)) is None  # of one person


def test_preprocessing_refuses_a_scan_of_two_people(config, monkeypatch):
    monkeypatch.setattr(volumes, "_check_session", lambda config, row: [])  # these are no heads
    _manifest(config, ["train"])
    rows = pd.read_csv(config.manifest, dtype=str, keep_default_na=False)
    other = rows.assign(person="sub-2", t1w="t1b.nii.gz", tau="tau2.nii.gz")
    for number, name in enumerate(("t1.nii.gz", "tau.nii.gz", "tau2.nii.gz")):
        save(config.work / name, np.random.default_rng(number).random(GRID.shape))
    shutil.copy(config.work / "t1.nii.gz", config.work / "t1b.nii.gz")
    write_csv(config.manifest, pd.concat([rows, other]))
    with pytest.raises(LeakageError, match=r"manifest\.csv: 1 scan is .*t1\.nii\.gz of sub-1 ses-0 and .*t1b\.nii\.gz"):
        volumes.preprocess(config, progress=False)
