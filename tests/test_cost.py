"""The estimated time of a run: its arithmetic, not the measured times."""

from __future__ import annotations

import pytest
from conftest import changed
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
    return changed(load_config("phantom"), root=tmp_path)


@pytest.fixture
def timed(monkeypatch):
    """Methods that are timed, at 2 s a step and 3 s a volume, and the grid's shape; evaluators take 0.1 s a step."""
    calls = []

    def method_seconds(config, name):
        calls.append((name, config.preprocess.grid.shape))
        return 2.0, 3.0

    monkeypatch.setattr(cost, "method_seconds", method_seconds)
    monkeypatch.setattr(cost, "_evaluator_seconds", lambda config, target: 0.1)
    monkeypatch.setattr(cost, "_scan_stages", lambda config, n, cores: iter([Stage("scans", 0.5, n, "s", cores)]))
    monkeypatch.setattr(cost, "seconds_of", lambda work: 4.0)
    return calls


def by_name(config, cores=2) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(config, cores=cores)}


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
    folds = changed(config, cohort={"split": SplitConfig(folds=4, validation=0.15)})
    assert sessions_by_split(folds) == {"train": round(336 * 0.6), "validation": round(336 * 0.15), "test": 84}
    rows = sessions(people=4, seed=1).drop_duplicates("person")
    write_manifest(rows.assign(split=["train"] * 3 + ["test"]), config.manifest)
    assert sessions_by_split(config) == {"train": 3, "validation": 0, "test": 1}
    with pytest.raises(ManifestError, match="no such manifest; make one with `resdm manifest` first"):
        sessions_by_split(changed(load_config("dlbs"), root=tmp_path / "elsewhere"))


def test_steps_by_hand(config):
    assert training_steps(config, "ResDM", 235) == 3 * 235
    assert training_steps(config, "ResDM", 0) == 3  # an epoch has at least one step
    four = {"ResDM": changed(config.method("ResDM"), batch_size=4)}
    assert training_steps(changed(config, methods=four), "ResDM", 235) == 3 * 58
    # 188 sessions a fold in batches of 8, label and planted status
    assert evaluator_steps(config, "status", 235) == 2 * 2 * 5 * 8 * 24
    assert evaluator_steps(config, "age", 235) == 2 * 15 * 24


def test_stages_add_up(config, timed):
    """Finished work costs nothing."""
    config = changed(config, methods={name: config.methods[name] for name in ("ResDM", "regression", "Base", "linear")})
    first = by_name(config)
    assert [name for name, _ in timed] == ["ResDM", "regression"]  # Base has ResDM's network; linear is no network
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
    later = by_name(config)
    assert later["training regression"].units == 0
    assert later["synthesis regression"].units == 67
    assert "training Base" not in later
    assert later["starts of jobs"].units == 16 + 2 + 1 + 2
    equal_time = changed(config, training={"budget": "equal_time", "seconds": 180.0, "threads": None})
    assert by_name(equal_time)["training ResDM"].total == 180.0
    lines = report(list(later.values()), "on this CPU").splitlines()
    assert "training regression" not in "\n".join(lines)
    total = sum(stage.total for stage in later.values())
    assert lines[-1] == f"about {about(total)} on this CPU; tables and figures come in addition"


def test_networks_of_other_widths_are_timed_apart_and_a_large_grid_on_a_small_one(config, timed):
    narrow = config.methods["Pix2Pix"]
    methods = {"A": narrow, "B": changed(narrow, width=64), "C": changed(narrow, seed=3)}
    grid = load_config("adni").preprocess.grid
    found = by_name(changed(config, methods=methods, preprocess={"grid": grid}), cores=1)
    assert timed == [("A", (32, 32, 32)), ("B", (32, 32, 32))]
    assert found["training C"].seconds == 2.0 * 64  # 128³ over 32³
    assert found["evaluators of age"].seconds == pytest.approx(0.1 * 64)


@pytest.mark.parametrize("profile", ["released", "phantom_attributes"])
def test_a_profile_of_another_purpose_counts_neither_evaluators_nor_samples(profile, tmp_path, timed):
    found = by_name(changed(load_config(profile), root=tmp_path))
    assert not any(name.startswith("evaluators") for name in found)
    if profile == "phantom_attributes":  # the person's own prompt, and each of five fields shuffled
        assert found["synthesis ResDM+all"].units == 3 * 34 + 67 * 6


def test_work_is_really_timed(tmp_path):
    calls = []
    assert 0 <= seconds_of(lambda: calls.append(1)) < 1
    assert len(calls) == 2
    config = make_config(tmp_path, methods={"regression": load_config("smoke").methods["regression"]})
    assert all(seconds > 0 for seconds in cost.method_seconds(config, "regression"))
    assert cost._evaluator_seconds(changed(config, evaluation=load_config("smoke").evaluation), "age") > 0
    assert list(tmp_path.rglob("*")) == []  # and leaves nothing behind
