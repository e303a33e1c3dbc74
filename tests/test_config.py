"""Profiles are strict: what is unknown, of another type or out of range is named before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from resdm.baselines.regression import RegressionConfig
from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm.settings import ConfigError, check_person, derive_seed, method_from_dict, to_dict
from resdm_suite.profiles import Config, GridConfig, load_config

MINIMAL = {"cohort": {"kind": "phantom", "phantom": {"people": 12}}}


@pytest.fixture
def write(tmp_path):
    def write(tree, name="mine.yaml"):
        path = tmp_path / "configs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


def nested(path, value):
    """``nested("a.b", 1)`` → ``{"a": {"b": 1}}`` over the minimal profile."""
    tree = yaml.safe_load(yaml.safe_dump(MINIMAL))
    at = tree
    *folders, last = path.split(".")
    for key in folders:
        at = at.setdefault(key, {})
    at[last] = value
    return tree


# ── what is read ──────────────────────────────────────────────────────────────────────────────────


def test_defaults_and_places(write, tmp_path):
    config = load_config(write(MINIMAL))
    assert (config.profile, config.seed) == ("mine", 0)
    assert config.cohort.phantom.people == 12
    assert config.preprocess.grid == GridConfig((128, 128, 128), 1.5)
    assert config.root == tmp_path
    assert config.model("ResDM") == tmp_path / "work" / "mine" / "models" / "ResDM"
    assert config.predictions("ResDM", "no_sex") == tmp_path / "work" / "mine" / "predictions" / "ResDM" / "no_sex"
    assert config.notice == "phantom data: not a reproduction of the paper's numbers"


def test_values_take_their_types(write):
    tree = MINIMAL | {
        "training": {"epochs": 3, "clip_norm": 1, "precision": "bf16-mixed"},
        "preprocess": {"grid": {"shape": [32, 40, 32], "voxel_mm": 6}},
        "methods": {"A": {"kind": "residual_diffusion", "learning_rate": "1e-3", "steps": 4},
                    "B": {"kind": "regression", "batch_size": 2, "precision": None}},
    }  # fmt: skip
    config = load_config(write(tree))
    assert config.training.clip_norm == 1.0
    assert isinstance(config.training.clip_norm, float)
    assert config.preprocess.grid == GridConfig((32, 40, 32), 6.0)
    assert isinstance(config.method("A"), ResidualDiffusionConfig)
    assert config.method("A").learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert isinstance(config.method("B"), RegressionConfig)


def test_a_profile_written_out_reads_back(write):
    config = load_config(write(MINIMAL | {"seed": 3}))
    again = load_config(write(to_dict(config), "again.yaml"))
    assert again == config
    assert again.digest() == config.digest()
    assert method_from_dict(to_dict(config.method("ResDM")), "test") == config.method("ResDM")


def test_a_name_is_found_from_a_subfolder(write, tmp_path, monkeypatch):
    write(MINIMAL)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load_config("mine").root == tmp_path
    assert load_config("configs/mine.yaml").root == tmp_path
    with pytest.raises(ConfigError, match=r"no profile 'yours': looked for .*; there are: .*mine"):
        load_config("yours")


def test_the_digest_follows_the_settings_not_the_place(write):
    config = load_config(write(MINIMAL))
    assert dataclasses.replace(config, root=Path("elsewhere")).digest() == config.digest()
    assert dataclasses.replace(config, seed=1).digest() != config.digest()
    changed = load_config(write(nested("training.epochs", 7), "mine.yaml"))
    assert changed.digest("preprocess") == config.digest("preprocess")
    assert changed.digest("training") != config.digest("training")


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "message"), [
    ("trainnig", r"unknown key 'trainnig' \(did you mean 'training'\?\); the file takes: profile, seed"),
    ("training.epoch", r"unknown key 'training\.epoch' \(did you mean 'epochs'\?\); training takes: budget, epochs"),
    ("cohort.phantom.persons", r"unknown key 'cohort\.phantom\.persons'.*cohort\.phantom takes: people"),
    ("preprocess.grid.size", r"unknown key 'preprocess\.grid\.size'"),
])  # fmt: skip
def test_unknown_keys_are_refused_with_a_suggestion(write, path, message):
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {message}"):
        load_config(write(nested(path, 1)))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("training.epochs", "many", r"training\.epochs: expected int, found 'many'"),
    ("training.epochs", 2.5, r"training\.epochs: expected int, found 2\.5"),
    ("training.epochs", True, r"training\.epochs: expected int, found True"),
    ("training.flip", 1, r"training\.flip: expected bool, found 1"),
    ("training.clip_norm", "a bit", r"training\.clip_norm: expected float, found 'a bit'"),
    ("training.precision", "fp8", r"training\.precision is 'fp8'; expected one of 32-true, 16-mixed, bf16-mixed"),
    ("training", {"clip_norm": 1.0, "precision": "16-mixed"}, r"clip_norm cannot be had with training's preci"),
    ("training.budget", "equal", r"training\.budget is 'equal'; expected one of equal_epochs, equal_time"),
    ("training", [1, 2], r"training: expected a mapping, found \[1, 2\]"),
    ("preprocess.grid.shape", [32, 32], r"preprocess\.grid\.shape: expected 3 values, found 2"),
    ("preprocess.grid.shape", 32, r"preprocess\.grid\.shape: expected a list, found 32"),
    ("cohort.kind", "oasis", r"cohort\.kind is 'oasis'; expected one of phantom, dlbs, adni, other"),
    ("methods", {"A": {"kind": "resdm"}}, r"methods\.A\.kind is 'resdm'.*expected one of residual_diffusion"),
    ("methods", {"A": {"learning_rate": 1}}, r"methods\.A needs a kind: one of"),
    ("methods", {"A": {"kind": "regression", "precision": "half"}}, r"methods\.A\.precision is 'half'"),
    ("methods", {"A": {"kind": "regression", "network": {"widht": 3}}}, r"network\.widht' \(did you mean 'width'\?"),
])  # fmt: skip
def test_wrong_types_are_named(write, path, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(nested(path, value)))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("training.epochs", 0, "must each be at least 1"),
    ("training.batch_size", 0, "must each be at least 1"),
    ("training.validate_every", 0, "must each be at least 1"),
    ("training.checkpoint_every", -1, "must each be at least 1"),
    ("training.clip_norm", 0, r"training\.clip_norm is 0\.0; expected more than 0"),
    ("training.seconds", -5, r"training\.seconds is -5\.0; expected more than 0"),
    ("training.budget", "equal_time", r"training\.seconds is missing"),
    ("training.devices", 0, "expected devices ≥ 1"),
    ("training.workers", -1, "workers ≥ 0"),
    ("training.shift_voxels", -1, "shift_voxels ≥ 0"),
    ("training.threads", 0, r"training\.threads is 0; expected at least 1"),
    ("cohort.split.test", 0.95, r"cohort\.split: test 0\.95 and validation 0\.1 must leave people to train on"),
    ("preprocess.grid.shape", [8, 32, 32], "16 voxels an axis are the least"),
    ("preprocess.grid.voxel_mm", 0, "expected more than 0"),
    ("preprocess.suvr_range", {"amyloid": [0, 3]}, "needs exactly the keys amyloid, tau"),
    ("preprocess.suvr_range", {"amyloid": [0, 3], "tau": [2, 1]}, r"suvr_range\.tau: 2\.0 is not below 1\.0"),
    ("evaluation.folds", 1, r"evaluation\.folds is 1; expected at least 2"),
    ("evaluation.sex.epochs", 0, r"evaluation\.sex: width, pool, epochs and batch_size must each be at least 1"),
    ("evaluation.age.pool", 17, r"evaluation\.age\.pool is 17; 8 voxels an axis must be left"),
    ("evaluation.status.shift_voxels", -1, r"evaluation\.status: expected learning_rate > 0, .* shift_voxels ≥ 0"),
    ("methods", {}, "methods is empty"),
    ("conditions", ["no_sexx"], r"conditions: no condition 'no_sexx' \(did you mean 'no_sex'\?\)"),
    ("conditions", ["age_12"], r"conditions: 'age_12' is outside 18–110 years"),
    ("methods", {"template": {"kind": "regression"}}, "'template' cannot be a method's name"),
    ("methods", {"age_sex": {"kind": "regression"}}, "'age_sex' cannot be a method's name"),
    ("methods", {"a/b": {"kind": "regression"}}, "'a/b' cannot be a method's name"),
    ("methods", {"A": {"kind": "regression", "learning_rate": 0}}, r"methods\.A\.learning_rate must be more than 0"),
    ("methods", {"A": {"kind": "regression", "ema": 1}}, r"methods\.A\.ema is 1\.0; expected 0 \(none\)"),
    ("methods", {"A": {"kind": "regression", "batch_size": 0}}, r"methods\.A\.batch_size is 0; expected at least 1"),
    ("methods", {"A": {"kind": "residual_diffusion", "sampling_steps": 16}}, "expected 1 to 15"),
    ("methods", {"A": {"kind": "residual_diffusion", "start_share": 1.5}}, r"start_share is 1\.5; expected 0 to 1"),
    ("methods", {"A": {"kind": "residual_diffusion", "eta_range": [0.9, 0.1]}}, r"needs steps ≥ 1, 0 < eta_range\[0\]"),
])  # fmt: skip
def test_values_out_of_range_are_named(write, path, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(nested(path, value)))


def test_a_phantom_cohort_needs_its_settings(write):
    with pytest.raises(ConfigError, match=r"cohort\.kind is phantom, but cohort\.phantom is missing"):
        load_config(write({"seed": 0}))


def test_evaluators_keep_the_defaults_of_their_own_original(write):
    evaluation = load_config(write(nested("evaluation.age.pool", 2))).evaluation
    assert (evaluation.age.width, evaluation.age.batch_size, evaluation.age.shift_voxels) == (8, 28, 10)
    assert (evaluation.sex.width, evaluation.status.shift_voxels, evaluation.folds) == (16, 3, 5)


@pytest.mark.parametrize(("text", "message"), [
    ("a: [1", "not a YAML file"),
    ("- 1\n- 2\n", "expected a mapping of settings, found list"),
    ("", "expected a mapping of settings, found NoneType"),
])  # fmt: skip
def test_files_that_are_no_profile(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


def test_an_unknown_method_is_named_with_those_there_are(write):
    config = load_config(write(MINIMAL))
    with pytest.raises(ConfigError, match=r"no method 'resdm' \(did you mean 'ResDM'\?\); it has: ResDM"):
        config.method("resdm")


@pytest.mark.parametrize(("age", "sex", "message"), [
    (7.0, None, r"here: age 7\.0 is outside 18–110 years"),
    (float("nan"), None, "here: age nan is outside"),
    (70.0, "f", "here: unknown sex 'f'; expected one of F, M"),
])  # fmt: skip
def test_people_that_cannot_be(age, sex, message):
    with pytest.raises(ValueError, match=message):
        check_person(age, sex, "here")
    check_person(None, None, "here")
    check_person(18, "F", "here")


def test_derived_seeds():
    seeds = {derive_seed(seed, use, epoch) for seed in range(5) for use in ("order", "noise") for epoch in range(20)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    assert Config(profile="x").seed == 0
