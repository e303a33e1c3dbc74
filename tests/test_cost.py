"""The estimated time of a run: its arithmetic, not the measured times."""

from __future__ import annotations

import dataclasses

import pytest
from stored_cohort import make_config, sessions

from resdm import timing
from resdm.timing import about, forecaster
from resdm_suite.apps import cost
from resdm_suite.apps.cost import Stage, evaluator_steps, report, seconds_of, sessions_by_split, stages, training_steps
from resdm_suite.cohorts.manifest import ManifestError, write_manifest
from resdm_suite.profiles import SplitConfig, load_config

SPLITS = {"train": 235, "validation": 34, "test": 67}  # of 300 people with 1.12 sessions each


@pytest.fixture
def config(tmp_path):
    """The default profile, without any result."""
    return dataclasses.replace(load_config("phantom"), root=tmp_path)


def test_durations_have_the_precision_of_an_estimate():
    texts = [about(seconds) for seconds in (0.4, 89, 91, 3540, 3700, 35900, 86400)]
    assert texts == ["0 s", "89 s", "2 min", "59 min", "1.0 h", "10.0 h", "24 h"]


@pytest.mark.parametrize(("total", "done", "printed"), [
    (1000, 0, ["training X: about 8 min, 1000 steps"]),  # 0.5 s a step
    (1000, 900, []),  # 50 s are left
    (119, 0, []),
    (122, 0, ["training X: about 61 s, 122 steps"]),
])  # fmt: skip
def test_a_long_run_prints_its_estimate_once(monkeypatch, total, done, printed):
    """Half a second per step, except the first, which is slow and does not count."""
    clock, lines = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    note = forecaster("training X", total, "steps", done, write=lines.append)
    for step in range(done + 1, total + 1):
        clock[0] += 9.0 if step == done + 1 else 0.5
        note(step)
        assert lines == (printed if step >= done + 3 else [])  # after a second of timed work


def test_session_counts_are_the_manifests_or_the_expected(config, tmp_path):
    assert sessions_by_split(config) == SPLITS
    folds = dataclasses.replace(config.cohort, split=SplitConfig(folds=4, validation=0.15))
    expected = {"train": round(336 * 0.6), "validation": round(336 * 0.15), "test": 84}
    assert sessions_by_split(dataclasses.replace(config, cohort=folds)) == expected
    rows = sessions(people=4, seed=1).drop_duplicates("person")
    write_manifest(rows.assign(split=["train"] * 3 + ["test"]), config.manifest)
    assert sessions_by_split(config) == {"train": 3, "validation": 0, "test": 1}
    real = dataclasses.replace(load_config("dlbs"), root=tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="no such manifest; make one with `resdm manifest` first"):
        sessions_by_split(real)


def test_steps_by_hand(config):
    assert training_steps(config, "ResDM", 235) == 3 * 235
    assert training_steps(config, "ResDM", 0) == 3  # an epoch has at least one step
    four = dataclasses.replace(config.method("ResDM"), batch_size=4)
    assert training_steps(dataclasses.replace(config, methods={"ResDM": four}), "ResDM", 235) == 3 * 58
    # 188 sessions a fold in batches of 8, label and planted status
    assert evaluator_steps(config, "status", 235) == 2 * 2 * 5 * 8 * 24
    assert evaluator_steps(config, "age", 235) == 2 * 15 * 24


def test_stages_add_up(config, monkeypatch):
    """Every method at 2 s per step and 3 s per volume, evaluators 0.1 s; finished work costs nothing."""
    timed_methods = []
    monkeypatch.setattr(cost, "method_seconds", lambda config, name: timed_methods.append(name) or (2.0, 3.0))
    monkeypatch.setattr(cost, "_evaluator_seconds", lambda config, target: 0.1)
    monkeypatch.setattr(cost, "_scan_stages", lambda config, n, cores: iter([Stage("scans", 0.5, n, "s", cores)]))
    monkeypatch.setattr(cost, "seconds_of", lambda work: 4.0)
    methods = {name: config.methods[name] for name in ("ResDM", "regression", "Base", "linear")}
    config = dataclasses.replace(config, methods=methods)
    first = {stage.name: stage for stage in stages(config, cores=2)}
    assert timed_methods == ["ResDM", "regression"]  # Base has ResDM's network; linear is fitted in closed form
    assert not any(name.endswith(" linear") for name in first)
    assert first["scans"].total == 0.5 * 336 / 2
    assert first["training Base"].total == 2.0 * 3 * 235 / 2  # two at a time, one thread each
    assert first["synthesis Base"].units == 3 * 34 + 67
    conditions, samples = len(config.conditions), config.uncertainty.samples
    assert first["synthesis ResDM"].units == 3 * 34 + 67 * (1 + conditions) + samples * (34 + 67)
    assert first["evaluators of status"].total == pytest.approx(0.1 * 3840 / 2)
    assert (first["starts of jobs"].units, first["starts of jobs"].seconds) == (16 + 2 * 4, 4.0)
    for place in (config.model("regression") / "model.safetensors", config.predictions("Base") / "scores.csv"):
        place.parent.mkdir(parents=True)
        place.touch()
    later = {stage.name: stage for stage in stages(config, cores=2)}
    assert later["training regression"].units == 0
    assert later["synthesis regression"].units == 67
    assert "training Base" not in later
    assert later["starts of jobs"].units == 16 + 2 + 1 + 2
    run = dataclasses.replace(config.training, budget="equal_time", seconds=180.0, threads=None)
    timed = {stage.name: stage for stage in stages(dataclasses.replace(config, training=run), cores=2)}
    assert timed["training ResDM"].total == 180.0
    lines = report(list(later.values()), "on this CPU").splitlines()
    assert "training regression" not in "\n".join(lines)
    total = sum(stage.total for stage in later.values())
    assert lines[-1] == f"about {about(total)} on this CPU; tables and figures come in addition"


def test_networks_of_other_widths_are_timed_apart(config, monkeypatch):
    timed, narrow = [], config.methods["Pix2Pix"]
    monkeypatch.setattr(cost, "method_seconds", lambda config, name: timed.append(name) or (1.0, 1.0))
    monkeypatch.setattr(cost, "_evaluator_seconds", lambda *_: 1.0)
    monkeypatch.setattr(cost, "_scan_stages", lambda *_: iter(()))
    monkeypatch.setattr(cost, "seconds_of", lambda work: 0.0)
    methods = {"A": narrow, "B": dataclasses.replace(narrow, width=64), "C": dataclasses.replace(narrow, seed=3)}
    list(stages(dataclasses.replace(config, methods=methods), cores=1))
    assert timed == ["A", "B"]


@pytest.mark.parametrize("profile", ["released", "phantom_attributes"])
def test_a_profile_of_another_purpose_counts_neither_evaluators_nor_samples(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "method_seconds", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(cost, "_scan_stages", lambda *_: iter(()))
    monkeypatch.setattr(cost, "seconds_of", lambda work: 0.0)
    config = dataclasses.replace(load_config(profile), root=tmp_path)
    found = {stage.name: stage.units for stage in stages(config, cores=2)}
    assert not any(name.startswith("evaluators") for name in found)
    if profile == "phantom_attributes":  # the person's own prompt, and each of five fields shuffled
        assert found["synthesis ResDM+all"] == 3 * 34 + 67 * 6


def test_a_large_grid_is_timed_on_a_small_one(config, monkeypatch):
    shapes = []
    monkeypatch.setattr(cost, "method_seconds", lambda c, name: shapes.append(c.preprocess.grid.shape) or (1.0, 1.0))
    monkeypatch.setattr(cost, "_evaluator_seconds", lambda c, target: 1.0)
    monkeypatch.setattr(cost, "_scan_stages", lambda *_: iter(()))
    monkeypatch.setattr(cost, "seconds_of", lambda work: 0.0)
    preprocess = dataclasses.replace(config.preprocess, grid=load_config("adni").preprocess.grid)
    large = dataclasses.replace(config, methods={"regression": config.methods["regression"]}, preprocess=preprocess)
    found = {stage.name: stage.seconds for stage in stages(large, cores=1)}
    assert shapes == [(32, 32, 32)]
    assert found["training regression"] == found["evaluators of age"] == 64  # 128³ over 32³


def test_work_is_really_timed(tmp_path):
    calls = []
    assert 0 <= seconds_of(lambda: calls.append(1)) < 1
    assert len(calls) == 2
    config = make_config(tmp_path, methods={"regression": load_config("smoke").methods["regression"]})
    assert all(seconds > 0 for seconds in cost.method_seconds(config, "regression"))
    tiny = dataclasses.replace(config, evaluation=load_config("smoke").evaluation)
    assert cost._evaluator_seconds(tiny, "age") > 0
    assert list(tmp_path.rglob("*")) == []  # and leaves nothing behind
