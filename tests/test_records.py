"""Damaged intermediates: an error names the file and the stage to run again; nothing damaged is used in silence."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import Process, get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_cohort import make_config, write_volumes
from stored_readings import make_sex, store_readings
from tiny_methods import PlainConfig

from resdm.io import write_csv, write_json
from resdm.pretraining import pretrain_text_tower
from resdm.prior import PriorConfig, PriorModule, TowerConfig
from resdm.settings import TrainingConfig
from resdm.weights import CheckpointError, read_weights, save_weights
from resdm_suite.apps import training
from resdm_suite.apps.prediction import Model
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.evaluation.fitting import Evaluator, fit_evaluator
from resdm_suite.evaluation.image_quality import read_scores, score_people
from resdm_suite.evaluation.readings import read_readings
from resdm_suite.paths import visible
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import EvaluationConfig, EvaluatorConfig
from resdm_suite.records import (
    NAME,
    RecordError,
    check_folder,
    checked,
    faults,
    read_csv,
    read_json,
    reading,
    write_record,
)

SPLITS = ["train"] * 3 + ["validation"] + ["test"] * 2
PET = "sub-0004/ses-M000/pet/sub-0004_ses-M000_trc-18FAV45_space-MNI152NLin2009aSym_desc-synth_pet.nii.gz"


def run(config) -> None:
    """Train, synthesise and score."""
    train_method(config, "Plain", progress=False)
    synthesise_method(config, "Plain", progress=False)


def use(config) -> None:
    """Read everything as later stages do."""
    data_set(config)
    scores(config)
    read_scores(config, ["Plain"])
    synthesise_method(replace(config, profile="tiny"), "Plain", "no_age", progress=False)


def make_profile(root):
    """A tiny profile whose volumes have a record, as preprocessing leaves one."""
    training = TrainingConfig(epochs=1, batch_size=2, accelerator="cpu", threads=1)
    evaluation = EvaluationConfig(sex=EvaluatorConfig(width=2, epochs=1, shift_voxels=0))
    config = make_config(root, training=training, evaluation=evaluation, methods={"Plain": PlainConfig()})
    write_volumes(config, SPLITS)
    config.manifest.write_text("person\n")
    volumes = [path for path in config.volumes.rglob("*") if path.is_file()]
    write_record(config.volumes, "resdm preprocess tiny", volumes, [config.manifest])
    return config


def evaluator(config) -> Evaluator:
    """Fitted on random volumes, or the stored one."""
    people, labels = np.array([f"sub-{i}" for i in range(6)]), np.array([0.0, 1.0] * 3)
    volumes = torch.rand((6, 1, *config.preprocess.grid.shape), generator=torch.Generator().manual_seed(0))
    return fit_evaluator(
        config, "sex", "sex_tau", lambda: volumes, people, labels, (np.arange(4), np.arange(4, 6))
    )  # fmt: skip


def text_tower(config) -> None:
    """Pretrained in four steps, or the stored one."""
    tower = TowerConfig(width=16, heads=2, layers=2, embed_dim=16, pretraining_steps=4)
    torch.manual_seed(0)
    pretrain_text_tower(PriorModule(PriorConfig(weights="none", tower=tower)), 0, folder=config.work / "pretraining")


def data_set(config) -> CohortDataset:
    return CohortDataset(config, "train")


def model(config) -> Model:
    return Model.load(config.model("Plain"))


def scores(config) -> pd.DataFrame:
    """Of the stored volumes."""
    return score_people(config, "Plain")


def quality(config) -> None:
    check_folder(config.work / "qc")


PREPROCESS, PREDICT, QC = "resdm preprocess tiny", "resdm predict tiny Plain", "resdm qc tiny"
SEX = "notebooks/07_figure4_gender.ipynb"
FILES = {  # of the pipeline: who reads it, and what its error tells to do
    "volumes/index.csv": (data_set, PREPROCESS), "volumes/cohort.json": (data_set, PREPROCESS),
    "volumes/cohort.npy": (data_set, PREPROCESS), "volumes/sub-0004/tau.nii.gz": (scores, PREPROCESS),
    "models/Plain/model.safetensors": (model, "train again"), "models/Plain/config.yaml": (model, "train again"),
    "predictions/Plain/factual/scores.csv": (lambda config: read_scores(config, ["Plain"]), PREDICT),
    f"predictions/Plain/factual/{PET}": (scores, PREDICT),
    "evaluation/models/sex_tau.safetensors": (evaluator, "run `resdm evaluators` again"),
    "evaluation/sex.csv": (lambda config: read_readings(config, "sex"), SEX),
    "pretraining/*.safetensors": (text_tower, "train again"),
    "qc/qc.csv": (quality, QC), "qc/sub-0004_ses-M000.json": (quality, QC),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = make_profile(tmp_path_factory.mktemp("finished"))
    run(config)
    use(config)
    evaluator(config)
    text_tower(config)
    store_readings(config, sex=make_sex(1.0, people=6))
    write_csv(config.work / "qc" / "qc.csv", pd.DataFrame({"person": ["sub-0004"], "flags": [""]}))
    write_json(config.work / "qc" / "sub-0004_ses-M000.json", {"measures": {"tau_suvr_max": 2.0}})
    for folder, stage, name in (("evaluation", SEX, ".sex"), ("qc", QC, "")):
        files = [path for path in (config.work / folder).iterdir() if path.is_file()]
        write_record(config.work / folder, stage, files, name=name + NAME)
    return config


@pytest.fixture
def copy(finished, tmp_path):
    """A copy with other times: as good as the original."""
    shutil.copytree(finished.work, tmp_path / "work" / "tiny", copy_function=shutil.copyfile)
    return replace(finished, root=tmp_path)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(FILES)),
    kind=st.sampled_from(["flipped", "cut", "empty", "longer", "another"]),
    at=st.floats(0, 1, exclude_max=True),
)
def test_no_damaged_file_is_used(finished, name, kind, at):
    """500 damaged files, each read by the functions that read it in a run."""
    (path,), (reader, remedy) = finished.work.glob(name), FILES[name]
    content, times, place = path.read_bytes(), path.stat(), int(at * path.stat().st_size)
    damaged = {
        "flipped": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "cut": content[:place], "empty": b"", "longer": content + content[: place + 1], "another": content[::-1],
    }  # fmt: skip
    try:
        path.write_bytes(damaged[kind])
        with pytest.raises((RecordError, CheckpointError), match=re.escape(str(path))) as error:
            reader(finished)
        assert remedy in str(error.value)
        assert "\n" not in str(error.value)
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_model_of_an_older_version_is_refused_and_trained_again(copy):
    """Its settings are the same, but a weight has another name: as `linear.reads`, today `linear.basis`."""
    folder, path = copy.model("Plain"), copy.model("Plain") / "model.safetensors"
    new, (meta, values) = path.read_bytes(), read_weights(path, "a model", "train again")
    values["old_weights"] = values.pop("prompt_weights")
    save_weights(path, values, meta)
    write_record(folder, "resdm train tiny Plain", [path for path in folder.iterdir() if path.name != NAME])
    for work in (Model.of_profile, train_method, synthesise_method):
        with pytest.raises(
            CheckpointError, match=rf"{path} does not fit [^.]*\n.*old_weights: \[2\] in the file"
        ) as error:
            work(copy, "Plain")
        assert str(error.value).endswith("another version of this method: delete it and train again")
    path.unlink()
    run(copy)
    assert path.read_bytes() == new


def edited(change):
    def write(path):
        change(frame := pd.read_csv(path, dtype=str, keep_default_na=False))
        frame.to_csv(path, index=False)

    return write


def permuted(path):
    array = np.load(path)
    np.save(path, array[::-1])


def swapped(frame):
    frame.iloc[[0, 1]] = frame.iloc[[1, 0]].to_numpy()


def filled(column, value):
    return edited(lambda frame: frame.__setitem__(column, value))


INDEX, SCORES = "volumes/index.csv", "predictions/Plain/factual/scores.csv"


@pytest.mark.parametrize(("name", "change"), [
    ("volumes/cohort.npy", permuted),
    (INDEX, edited(swapped)),
    (INDEX, filled("age", "70")), (INDEX, filled("sex", "F")), (INDEX, filled("present_tau", "0")),
    (INDEX, filled("split", "test")), (SCORES, filled("psnr", "40")), (SCORES, filled("person", "sub-0004")),
    ("manifest.csv", lambda path: path.write_text("person\nsub-1\n")),
], ids=lambda value: value if isinstance(value, str) else None)  # fmt: skip
def test_an_edit_is_found_by_every_later_stage(copy, name, change):
    use(copy)
    change(copy.work / name)
    with pytest.raises(RecordError, match=f"{Path(name).name}.*run `resdm .* tiny"):
        use(copy)
    assert any(Path(name).name in line for line in faults(copy.work))


def test_a_kept_time_is_no_proof(copy):
    """`deep` reads what size, time and place call unchanged: a disk may lose a bit by itself."""
    path = copy.volumes / "cohort.npy"
    write_record(copy.volumes, "resdm preprocess tiny", [path])
    time.sleep(0.01)
    record = copy.volumes / NAME
    os.utime(record, ns=(time.time_ns() + 10**12,) * 2)  # everything below is older
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    checked(path)
    with pytest.raises(RecordError, match=r"cohort\.npy: changed since `resdm preprocess tiny` wrote it"):
        checked(path, deep=True)


def test_a_later_input_makes_a_result_outdated(copy):
    (copy.model("Plain") / "model.safetensors").unlink()
    config = replace(copy, seed=1)
    train_method(config, "Plain", progress=False)
    with pytest.raises(RecordError, match=r"scores\.csv: made before .*model\.safetensors changed; run `resdm predict"):
        read_scores(config, ["Plain"])
    synthesise_method(config, "Plain", progress=False)
    assert len(read_scores(config, ["Plain"]))


def test_every_damaged_file_is_named_and_outdated_ones_once(copy):
    assert faults(copy.work) == []
    pets = sorted((copy.work / "predictions" / "Plain" / "factual").rglob("*_pet.nii.gz"))[:2]
    pets[0].unlink()
    pets[1].write_bytes(b"")
    assert [line.partition(": ")[0] for line in faults(copy.work)] == [str(path) for path in pets]
    copy.manifest.write_text("person,session\n")
    outdated = [line for line in faults(copy.work) if "made before" in line and str(copy.volumes) in line]
    assert len(outdated) == 1


def test_stages_make_again_what_is_damaged(copy):
    before = (copy.work / SCORES).read_bytes()
    for name in (SCORES, f"predictions/Plain/factual/{PET}"):
        path = copy.work / name
        path.write_bytes(path.read_bytes()[:-9])
    synthesise_method(copy, "Plain", progress=False)
    assert (copy.work / SCORES).read_bytes() == before
    assert faults(copy.work, deep=True) == [] or all("no_age" in line for line in faults(copy.work, deep=True))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_unreadable_files_without_a_record_are_named(tmp_path, content):
    path = tmp_path / "qc" / "x.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.json: damaged \(.*\); delete it and run `resdm qc` again"):
        read_json(path)
    if content in (b"", b"\xff\xfe"):
        with pytest.raises(RecordError, match="damaged"):
            read_csv(path)
    with pytest.raises(RecordError, match="damaged"), reading(path):
        np.load(path)
    with pytest.raises(FileNotFoundError, match="run `resdm qc` first"), reading(tmp_path / "qc" / "y.json"):
        pass


@pytest.mark.parametrize("content", [
    "", "{", "[]", '{"stage": "x"}', '{"stage": "x", "inputs": {}, "outputs": {"a": 1}}',
])  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, content):
    write_record(tmp_path, "resdm qc tiny", [tmp_path / "a"])
    (tmp_path / "a").touch()
    (tmp_path / NAME).write_text(content)
    with pytest.raises(RecordError, match=r"\.record\.json: damaged; delete it and run the stage again"):
        checked(tmp_path / "a")
    assert len(faults(tmp_path)) == 1
    write_record(tmp_path, "resdm qc tiny", [tmp_path / "a"])
    assert faults(tmp_path) == []


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def start(config) -> Process:
    """The pipeline in a process of its own."""
    child = get_context("fork").Process(target=run, args=(config,))
    child.start()
    return child


def contents(config) -> dict[str, bytes]:
    """Results: all but clock times, the card that states them, and hidden files, as a killed writer leaves them."""
    paths = (path for name in ("models", "predictions") for path in sorted((config.work / name).rglob("*")))
    paths = [path for path in paths if path.is_file() and path.name not in ("timing.json", "README.md")]
    paths = [path for path in paths if not path.name.startswith(".")]
    return {path.relative_to(config.work).as_posix(): path.read_bytes() for path in paths}


def test_kills_at_random_moments_end_in_the_same_bytes(tmp_path):
    """SIGKILL at 20 moments, then an undisturbed end: the same bytes."""
    config, draw = make_profile(tmp_path / "killed"), random.Random(0)
    begin = time.perf_counter()
    reference = make_profile(tmp_path / "whole")
    run(reference)
    seconds, killed = time.perf_counter() - begin, 0
    while killed < 20:
        child = start(config)
        time.sleep(draw.uniform(0, seconds))
        child.kill()
        child.join()
        if child.exitcode:
            assert child.exitcode == -signal.SIGKILL
            killed += 1
            continue
        for name in ("models", "predictions"):  # it was faster: begin again
            shutil.rmtree(config.work / name)
    run(config)
    assert contents(config) == contents(reference)
    assert faults(config.work, deep=True) == []


def test_what_a_killed_writer_left_is_no_result(copy):
    """Beside every file, records included, half of a further one."""
    for path in [path for path in copy.work.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.with_name(f".999999.{path.name}").write_bytes(content[: len(content) // 2])
    use(copy)
    assert faults(copy.work, deep=True) == []
    assert not [path for path in visible(copy.work, "**/*") if "999999" in path.name]


def test_two_runs_at_once_wait_for_each_other(tmp_path, capfd, monkeypatch):
    config, reference = make_profile(tmp_path / "twice"), make_profile(tmp_path / "whole")
    run(reference)
    set_up = training.set_up  # within the lock: the first run holds it until the second has started
    monkeypatch.setattr(training, "set_up", lambda *settings: (time.sleep(1), set_up(*settings)))
    children = [start(config) for _ in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert contents(config) == contents(reference)
    assert "train Plain: another process is at work on it" in capfd.readouterr().err
