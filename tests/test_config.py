"""Profiles are strict: unknown keys, wrong types and values out of range are named before any work."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from resdm.baselines.regression import RegressionConfig
from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm.settings import ConfigError, check_person, derive_seed, method_from_dict, to_dict
from resdm_suite import profiles
from resdm_suite.profiles import Config, GridConfig, load_config, write_profile

RESDM, REGRESSION = {"kind": "residual_diffusion"}, {"kind": "regression"}
TRACERS = {"18FAV45": "amyloid", "18FFBB": "amyloid", "18FAV1451": "tau"}
MINIMAL = {"cohort": {"kind": "phantom", "phantom": {"people": 12}}}


@pytest.fixture
def write(tmp_path):
    def write(tree, name="mine.yaml"):
        path = tmp_path / "configs" / name
        path.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(tree, allow_unicode=True) if isinstance(tree, dict) else tree
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
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


# ── valid profiles ──────────────────────────────────────────────────────────────────────────────────


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
        "cohort": {"kind": "other", "tracers": TRACERS},
        "training": {"epochs": 3, "clip_norm": 1, "precision": "bf16-mixed"},
        "preprocess": {"grid": {"shape": [32, 40, 32], "voxel_mm": 6}},
        "methods": {"A": {"kind": "residual_diffusion", "learning_rate": "1e-3", "steps": 4},
                    "B": {"kind": "regression", "batch_size": 2, "precision": None}},
    }  # fmt: skip
    config = load_config(write(tree))
    assert config.cohort.tracers == TRACERS
    assert config.training.clip_norm == 1.0
    assert isinstance(config.training.clip_norm, float)
    assert config.preprocess.grid == GridConfig((32, 40, 32), 6.0)
    assert isinstance(config.method("A"), ResidualDiffusionConfig)
    assert config.method("A").learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert isinstance(config.method("B"), RegressionConfig)


def test_a_profile_written_out_reads_back(write):
    config = load_config(write(MINIMAL | {"seed": 3}))
    again = load_config(write(to_dict(config)))
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


@pytest.mark.parametrize("name", ["phantom", "released", "adni"])
def test_without_torch_a_profile_that_states_all_is_the_same(name, write, monkeypatch):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    path = write(to_dict(config), f"{name}.yaml")
    monkeypatch.setattr(profiles, "TORCH", False)
    read = load_config(path)
    assert type(read.method("ResDM" if name != "released" else "released")).__name__ == "Stated"
    assert all(read.digest(f"methods.{one}") == config.digest(f"methods.{one}") for one in config.methods)
    assert read.digest() == config.digest()
    if name == "phantom":
        assert read.method("ResDM").prior.tower.width == 128
        assert read.method("ResDM").eta_range == (0.04, 0.999)
        with pytest.raises(ConfigError, match=r"methods.ResDM: weight_decay, .* unknown without torch; install torch"):
            load_config(ROOT / "configs" / "phantom.yaml")


def test_the_digest_follows_the_settings_not_the_place(write):
    config = load_config(write(MINIMAL))
    assert dataclasses.replace(config, root=Path("elsewhere")).digest() == config.digest()
    assert dataclasses.replace(config, seed=1).digest() != config.digest()
    changed = load_config(write(nested("training.epochs", 7), "mine.yaml"))
    assert changed.digest("preprocess") == config.digest("preprocess")
    assert changed.digest("training") != config.digest("training")
    dotted = dataclasses.replace(config, methods={"v1.5": next(iter(config.methods.values()))})
    assert dotted.digest("methods.v1.5") != config.digest("methods")


def test_a_profile_extends_another(write):
    write(nested("training.epochs", 7) | {"seed": 3, "methods": {"A": RESDM, "B": RESDM | {"steps": 4}}}, "base.yaml")
    write({"extends": "base", "training": {"batch_size": 2}, "methods": {"B": REGRESSION}}, "middle.yaml")
    config = load_config(write({"extends": "middle", "seed": 4, "conditions": ["no_age"]}))
    assert (config.profile, config.seed, config.conditions) == ("mine", 4, ("no_age",))
    assert (config.training.epochs, config.training.batch_size, config.cohort.phantom.people) == (7, 2, 12)
    assert config.methods == {"A": ResidualDiffusionConfig(), "B": RegressionConfig()}  # replaced as a whole
    assert load_config(write(to_dict(config))) == config  # as a model folder stores it
    assert load_config(write({"extends": "middle", "methods": ["B"]})).methods == {"B": RegressionConfig()}


@pytest.mark.parametrize(("extends", "message"), [
    ("mine", "extends: 'mine' extends this profile itself"), ("loop", "extends: 'mine' extends this profile itself"),
    ("nobody", "no profile 'nobody'"), ("../base", "extends: '../base' cannot be a name"), (None, "cannot be a name"),
    ("base", "mine.yaml: methods: 'base' states no 'a' (did you mean 'A'?)"),
])  # fmt: skip
def test_a_profile_that_cannot_be_extended(write, extends, message):
    write({"extends": "mine"}, "loop.yaml")
    write(nested("methods", {"A": RESDM}), "base.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(write({"extends": extends, "methods": ["a"]}))
    assert message in str(error.value)


@pytest.mark.parametrize(("base", "source", "kind"), [
    ("dlbs", "csv", "other"), ("dlbs", "openneuro", "dlbs"), ("adni", "adni", "adni"), ("phantom", "bids", "other"),
])  # fmt: skip
def test_a_new_profile_differs_in_its_cohort_alone(tmp_path, monkeypatch, base, source, kind):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    path = write_profile("mine", base, source, Path("data"))
    new, old = load_config("mine"), load_config(base)
    assert path == tmp_path / "configs" / "mine.yaml"
    assert dataclasses.replace(new, profile=base, cohort=old.cohort) == old
    assert (new.cohort.kind, new.cohort.source, new.source_root) == (kind, source, tmp_path / "data")
    assert new.cohort.phantom is None
    for name, message in (("Mine", "a profile 'mine' already"), ("a b", "'a b' cannot be a name")):
        with pytest.raises(ConfigError, match=message):
            write_profile(name, base, source)


# ── invalid profiles ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "value", "message"), [
    ("trainnig", 1, "unknown key 'trainnig' (did you mean 'training'?); the file takes: profile, seed"),
    ("training.epoch", 1, "unknown key 'training.epoch' (did you mean 'epochs'?); training takes: budget, epochs"),
    ("cohort.phantom.persons", 1, "unknown key 'cohort.phantom.persons'; cohort.phantom takes: people"),
    ("preprocess.grid.size", 1, "unknown key 'preprocess.grid.size'; preprocess.grid takes: shape, voxel_mm"),
    ("root", "/", "unknown key 'root'"),
    ("training.epochs", "many", "training.epochs is 'many'; expected a valid integer"),
    ("training.epochs", 2.5, "training.epochs is 2.5; expected a valid integer"),
    ("training.epochs", True, "training.epochs is True; expected a valid integer"),
    ("training.flip", 1, "training.flip is 1; expected a valid boolean"),
    ("training.clip_norm", "a bit", "training.clip_norm is 'a bit'; expected a valid number"),
    ("training.precision", "fp8", "training.precision is 'fp8'; expected '32-true', '16-mixed' or 'bf16-mixed'"),
    ("training.budget", "equal", "training.budget is 'equal'; expected 'equal_epochs' or 'equal_time'"),
    ("training", [1, 2], "training is [1, 2]; expected a mapping"),
    ("preprocess.grid.shape", [32, 32], "preprocess.grid.shape[2] is missing"),
    ("preprocess.grid.shape", 32, "preprocess.grid.shape is 32; expected a list"),
    ("cohort.kind", "oasis", "cohort.kind is 'oasis'; expected 'phantom', 'dlbs', 'adni' or 'other'"),
    ("methods.A.kind", "ddmp", "methods.A.kind is 'ddmp' (did you mean 'ddpm'?); expected one of residual_diffusion"),
    ("methods.A.learning_rate", 1, "methods.A needs a kind: one of residual_diffusion, regression"),
    ("methods.A.kind", "nowhere_at_all:Ridge",
     "methods.A.kind is 'nowhere_at_all:Ridge', which cannot be imported: No module named 'nowhere_at_all'"),
    ("methods.A", REGRESSION | {"precision": "half"}, "methods.A.precision is 'half'; expected '32-true'"),
    ("methods.A", REGRESSION | {"network": {"widht": 3}},
     "unknown key 'methods.A.network.widht' (did you mean 'width'?); methods.A.network takes: width"),
    ("methods.A", REGRESSION | {"prior": {"tower": {"lessons": 3}}},
     "unknown key 'methods.A.prior.tower.lessons' (now 'pretraining_steps'); methods.A.prior.tower takes: width"),
    *((f"training.{key}", value, f"training.{key} is {value}; expected at least 1") for key, value in
      {"epochs": 0, "batch_size": 0, "validate_every": 0, "checkpoint_every": -1, "devices": 0, "threads": 0}.items()),
    ("training.clip_norm", 0, "training.clip_norm is 0.0; expected more than 0"),
    ("training.seconds", -5, "training.seconds is -5.0; expected more than 0"),
    ("training.budget", "equal_time", "training.seconds is None; expected a number of seconds"),
    ("training.workers", -1, "training.workers is -1; expected 0 or more"),
    ("training.accelerator", "tpu9", "training.accelerator is 'tpu9'; expected 'auto', 'cpu' or 'cuda'"),
    ("training.shift_voxels", -1, "training.shift_voxels is -1; expected 0 or more"),
    ("training", {"clip_norm": 1.0, "precision": "16-mixed"}, "clip_norm is not supported with training's precision"),
    *(("cohort", {"kind": "other", "source": source, "tracers": TRACERS | {"18FMK6240": "tau"}},
       "names 2 tau tracers (18FAV1451, 18FMK6240), whose SUVRs are on") for source in ("adni", "bids", "csv")),
    ("cohort.split.test", 0.95, "cohort.split.test is 0.95; expected a fraction that leaves people to train on"),
    ("cohort.split", {"folds": 3, "fold": 3}, "cohort.split.fold is 3; expected 0 or more, below 3"),
    ("cohort.phantom.pet_fwhm_mm", [8, 6], "cohort.phantom.pet_fwhm_mm is (8.0, 6.0); expected 0 < low ≤ high"),
    ("preprocess.grid.shape", [8, 32, 32], "preprocess.grid.shape[0] is 8; expected at least 16"),
    ("preprocess.grid.voxel_mm", 0, "preprocess.grid.voxel_mm is 0; expected greater than 0"),
    ("preprocess.suvr_range", {"amyloid": [0, 3]}, "preprocess.suvr_range is ['amyloid']; expected exactly the keys"),
    ("preprocess.suvr_range", {"amyloid": [0, 3], "tau": [2, 1]}, "suvr_range.tau is (2.0, 1.0); expected low"),
    ("evaluation.folds", 1, "evaluation.folds is 1; expected at least 2"),
    ("evaluation.sex.epochs", 0, "evaluation.sex.epochs is 0; expected at least 1"),
    ("evaluation.age.pool", 17, "evaluation.age.pool is 17; expected 8 voxels per axis or more"),
    ("evaluation.status.shift_voxels", -1, "evaluation.status.shift_voxels is -1; expected at least 0"),
    ("methods", {}, "methods must be a mapping of names"),
    ("methods.A.kind", ["ddpm"], "methods.A.kind is ['ddpm'] (did you mean 'ddpm'?); expected one of"),
    ("methods.A.kind", "../x:Net", "methods.A.kind is '../x:Net', which cannot be imported"),
    ("conditions", ["no_age", "no_age"], "conditions: one of them stands twice"),
    ("conditions", ["no_sexx"], "conditions[0]: no condition 'no_sexx' (did you mean 'no_sex'?)"),
    ("conditions", ["age_12"], "conditions[0]: 'age_12' is outside 18–110 years"),
    *(("methods", {name: REGRESSION}, f"methods: {name!r} cannot be a method's name: the suite uses it") for name in
      ("template", "age_sex", "Ceiling", "conditions")),
    *(("methods", {name: REGRESSION}, f"methods: {name!r} cannot be a name; expected a letter, then") for name in
      ("My Net", "U-Net (3D)", "a/b", "../x", "-rf", "it's", 'a"b', "Überblick", "x;ls", "$HOME", "{method}", "", "12",
       "1e5", "+1", "nan", "+inf", "None", "yes", "null", "2024-01-31", "a\nb", "a" * 65)),
    ("methods", {"Net": REGRESSION, "net": REGRESSION}, "methods: 'net' differs from another method by capitals only"),
    *(("profile", name, f"profile: {name!r} cannot be a name") for name in ("", "a b", "../x", "0012", 12, True, None)),
    ("profile", "phantom", "profile is 'phantom', but the file's name is 'mine', and results go to the folder of the"),
    *(("seed", seed, f"seed is {seed}; expected") for seed in (-1, 2**63, 2**64, 1.0)),
    *(("methods.A", REGRESSION | {"seed": seed}, f"methods.A.seed is {seed}; expected 0 or more, below 2⁶³")
      for seed in (-1, 2**63)),
    ("cohort.phantom.age_effect", float("nan"), "cohort.phantom.age_effect is nan; expected a finite number"),
    ("methods.A", REGRESSION | {"learning_rate": 0}, "methods.A.learning_rate is 0.0; expected more than 0"),
    ("methods.A", REGRESSION | {"ema": 1}, "methods.A.ema is 1.0; expected 0 (none) or a decay below 1"),
    ("methods.A", REGRESSION | {"batch_size": 0}, "methods.A.batch_size is 0; expected at least 1"),
    ("methods.A", REGRESSION | {"prior": {"dropout": 1}}, "methods.A.prior.dropout is 1.0; expected 0 ≤ p < 1"),
    ("methods.A", RESDM | {"sampling_steps": 16}, "methods.A.sampling_steps is 16; expected 1 to 15"),
    ("methods.A", RESDM | {"start_share": 1.5}, "methods.A.start_share is 1.5; expected 0 to 1"),
    ("methods.A", RESDM | {"eta_power": 0}, "methods.A.eta_power is 0.0; expected more than 0"),
    ("methods.A", RESDM | {"network": {"width": 6, "multipliers": [1, 2]}}, "heads is 8; expected a divisor of 12"),
    *(("methods.A", RESDM | {"network": network}, f"methods.A.network has {found}; expected numbers from 1") for
      network, found in (({"width": 0, "multipliers": [1]}, "width 0 and multipliers [1]"),
                         ({"multipliers": []}, "width 32 and multipliers []"))),
    ("methods.A", RESDM | {"prior": {"weights": "none", "tower": {"heads": 3}}}, "tower.heads is 3; expected"),
    ("methods.A", RESDM | {"betas": [0.9, 1]}, "methods.A.betas is (0.9, 1.0); expected two numbers from 0 to below 1"),
    ("preprocess.mri_percentile", 400, "preprocess.mri_percentile is 400; expected less than or equal to 100"),
    ("methods.A", RESDM | {"eta_range": [0.9, 0.1]}, "methods.A.eta_range is (0.9, 0.1); expected 0 < low < high ≤ 1"),
    ("methods", {"A": RESDM, "A@1": RESDM | {"kappa": 0.2}}, "methods.A@1 repeats methods.A: only its seed may differ"),
    ("methods", {"A": RESDM, "A@1": RESDM}, "methods.A@1 has the seed of methods.A; give each another seed"),
    ("methods.A", RESDM | {"network": {"linear_path": True}}, "methods.A.network.linear_path is fitted on images as"),
    *(("methods.A", {"kind": kind} | settings, f"methods.A.{message}") for kind, settings, message in (
        ("ddpm", {"sampling_steps": 30}, "sampling_steps is 30; expected a divisor of 1000"),
        ("ddpm", {"age_edges": [80, 60]}, "age_edges is (80.0, 60.0); expected ages in ascending order"),
        ("ddpm", {"channels": [8, 12]}, "channels is (8, 12); expected multiples of the first"),
        ("ddpm", {"channels": []}, "channels is (); expected multiples of the first"),
        ("ddpm", {"channels": [0, 4]}, "channels is (0, 4); expected multiples of the first"),
        ("ddpm", {"steps": 0}, "steps is 0; expected at least 1"),
        ("pix2pix", {"discriminator_learning_rate": 0}, "discriminator_learning_rate is 0.0; expected more than 0"),
        ("linear", {"penalties": [0.0]}, "penalties is [0.0]; expected one or more, each above 0"),
        ("linear", {"mri_components": [-1]}, "mri_components is [-1]"),
        ("linear", {"pet_components": []}, "pet_components is []"),
        ("released", {"width": 8}, "prior.dim is 256; expected 64"),
        ("released", {"prior": {"weights": "none"}}, "prior.context is 'tokens'; expected pooled"),
        ("released", {"repaired": ["everything"]}, "repaired[0] is 'everything'"),
        ("released", {"sampling_steps": 16}, "sampling_steps is 16; expected 1 to T = 15"),
        ("resdm.method:Ridge", {}, "kind is 'resdm.method:Ridge', which cannot be imported: module 'resdm.method' has"),
        (":Ridge", {}, "kind is ':Ridge', which cannot be imported: Empty module name"),
        ("pathlib:sep", {}, "kind is 'pathlib:sep', which cannot be imported: module 'pathlib' has no attribute 'sep'"),
        ("resdm.method:build_method", {}, "kind is 'resdm.method:build_method'; expected a class with config: a"))),
])  # fmt: skip
def test_a_bad_setting_is_named_with_its_value_and_what_is_expected(write, path, value, message):
    file = write(nested(path, value))
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_every_fault_of_a_file_is_named_and_a_phantom_cohort_needs_its_settings(write):
    with pytest.raises(ConfigError, match=r"(?s)training\.epochs is 'a'.*\n.*unknown key 'training\.b'"):
        load_config(write(nested("training", {"epochs": "a", "b": 1})))
    with pytest.raises(ConfigError, match=r"cohort\.kind is phantom, but cohort\.phantom is missing"):
        load_config(write({"seed": 0}))


def test_a_shared_profile_holds_no_path_of_this_machine(write):
    weights = {"prior": {"weights": "/data/weights/clip.safetensors"}}
    config = load_config(write(nested("methods.A", RESDM | weights) | {"fidelity": {"atlas": "aal"}}))
    assert "/data/weights" in str(to_dict(config))
    shared = to_dict(config.shareable)
    assert "/data/weights" not in str(shared)
    assert shared["methods"]["A"]["prior"]["weights"] == "clip.safetensors"
    assert shared["fidelity"]["atlas"] == "aal"


def test_evaluators_keep_the_defaults_of_their_own_original(write):
    evaluation = load_config(write(nested("evaluation.age.pool", 2))).evaluation
    assert (evaluation.age.width, evaluation.age.batch_size, evaluation.age.shift_voxels) == (8, 28, 10)
    assert (evaluation.sex.width, evaluation.status.shift_voxels, evaluation.folds) == (16, 3, 5)


@pytest.mark.parametrize(("text", "message"), [
    ("a: [1", "not a YAML file"),
    ("seed: 1\nseed: 2\n", "(?s)not a YAML file: 'seed' stands twice.*line 2"),
    ("methods: {no: {kind: regression}}", "methods: 'no' cannot be a name"),
    ("profile: 0012\n", "0012 is a number to base 8 or 60; .* or quote it"),
    (b"\xff\xfe", "not a YAML file"),
    ("seed: &a [*a]", "not a YAML file: Circular reference"),
    ("seed: 012", "not a YAML file: 012 is a number to base 8 or 60; write a decimal number"),
    ("training: {seconds: 1:30.5}", "1:30.5 is a number to base 8 or 60"),
    ("[" * 3000, "not a YAML file: maximum recursion depth"),
    ("- 1\n- 2\n", "expected a mapping of settings, found list"),
    ("", "expected a mapping of settings, found NoneType"),
])  # fmt: skip
def test_files_that_are_no_profile(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


@pytest.mark.parametrize(("age", "sex", "message"), [
    (float("nan"), None, "here: age nan is outside"), (70.0, "f", "here: unknown sex 'f'; expected one of F, M"),
])  # fmt: skip
def test_impossible_ages_and_sexes_are_refused(age, sex, message):
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
