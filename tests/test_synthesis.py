"""Predictions: conditions, independence of other people, files, errors."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import digests, tiny_resdm
from tiny_methods import SHAPE, Sessions, build, make_config, save_profile_model
from torch.utils.flop_counter import FlopCounterMode

from resdm.io import sha256
from resdm.method import build_method
from resdm.settings import ConfigError, derive_seed
from resdm_suite.anatomy import Grid
from resdm_suite.apps.prediction import (
    CPU_ATTENTION,
    Model,
    SynthesisError,
    bids_prefix,
    condition_prior,
    synthesise_mri,
    synthesise_people,
)
from resdm_suite.paths import SPACE, sidecar_path, synthetic_path

AGES, SEXES = [60.0, 65.0, 70.0, 75.0, None], ["F", "M", "F", "M", "F"]


@pytest.fixture
def folder(tmp_path):
    config = make_config(tmp_path)
    method = build(config, "Plain")
    torch.nn.init.constant_(method.prompt_weights, 0.5)  # the prompt matters
    return save_profile_model(tmp_path / "model", method, config, "Plain")


@pytest.fixture
def people():
    return pd.DataFrame({
        "person": [f"sub-{i:04d}" for i in range(5)],
        "session": ["ses-M000"] * 5,
        "age": AGES,
        "sex": SEXES,
        "amyloid_tracer": ["18FFBB", "18FAV45", None, "18FAV45", "18FAV45"],
        "tau_tracer": ["18FAV1451", None, "18FAV1451", "18FAV1451", math.nan],
    })  # fmt: skip


def mri(i):
    return Sessions(5)[i][0][0].numpy()


@pytest.fixture
def synthesise(folder, people, tmp_path):
    """Synthesise the five people, or others, into a folder of this name."""

    def call(out="out", people=people, mri=mri, model=folder, **options):
        return synthesise_people(model, people, mri, tmp_path / out, progress=False, **options)

    return call


def volumes(out):
    return digests(out, "*.nii.gz")


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("condition", "age", "sex"), [
    ("factual", AGES, SEXES),
    ("no_age", [None] * 5, SEXES),
    ("no_sex", AGES, [None] * 5),
    ("tracer_only", [None] * 5, [None] * 5),
    ("wrong_sex", AGES, ["M", "F", "M", "F", "M"]),
    ("age_82.5", [82.5] * 5, SEXES),
    ("sex_M", AGES, ["M"] * 5),
])  # fmt: skip
def test_prompt_values_of_each_condition(condition, age, sex):
    prior = condition_prior(condition, AGES, SEXES, seed=0)
    assert (list(prior.age), list(prior.sex)) == (age, sex)


def test_shuffles_give_everyone_the_values_of_another_person(people):
    ages = [float(i) for i in range(20, 60)]
    one = condition_prior("shuffled_age", ages, ["F"] * 40, seed=1)
    assert sorted(one.age) == ages
    assert all(a != b for a, b in zip(one.age, ages, strict=True))
    assert one == condition_prior("shuffled_age", ages, ["F"] * 40, seed=1)
    assert one != condition_prior("shuffled_age", ages, ["F"] * 40, seed=2)
    sexes = ["F" if age < 40 else "M" for age in ages]
    both = condition_prior("shuffled", ages, sexes, seed=1)
    assert both.age == one.age
    assert all((age < 40) == (sex == "F") for age, sex in zip(both.age, both.sex, strict=True))  # one person's two
    visits = [str(int(age) // 2) for age in ages]  # two of each person
    other = condition_prior("shuffled_age", ages, ["F"] * 40, seed=1, people=visits).age
    assert not any(str(int(age) // 2) == person for age, person in zip(other, visits, strict=True))
    assert sorted(set(other)) == ages[::2]


def test_a_wrong_value_is_never_the_own_one():
    doses = [0.0] * 12 + [1.0] * 6 + [2.0] * 2
    prior = condition_prior("wrong_dose", [70.0] * 20, ["F"] * 20, 0, {"dose": doses})
    assert prior.more["dose"] == (2.0,) * 12 + (2.0,) * 6 + (0.0,) * 2


@pytest.mark.parametrize(("condition", "message"), [
    ("factul", r"'factul' \(did you mean 'factual'\?\); expected one of factual, no_age"),
    ("age_400", "'age_400' is outside 18–110 years"), ("sex_X", "no condition 'sex_X'"),
])  # fmt: skip
def test_unknown_and_impossible_conditions(condition, message):
    with pytest.raises(ConfigError, match=message):
        condition_prior(condition, AGES, SEXES, 0)


# ── many people ───────────────────────────────────────────────────────────────────────────────────


def test_files_affine_and_sidecar(folder, synthesise):
    out = synthesise()
    assert sorted(file.name for file in out.rglob("*.nii.gz"))[:3] == [
        f"sub-0000_ses-M000_trc-18FAV1451_space-{SPACE}_desc-synth_pet.nii.gz",
        f"sub-0000_ses-M000_trc-18FFBB_space-{SPACE}_desc-synth_pet.nii.gz",
        f"sub-0001_ses-M000_trc-18FAV1451_space-{SPACE}_desc-synth_pet.nii.gz",  # no real tau: the tracer's default
    ]
    path = synthetic_path(out, "sub-0001", "ses-M000", "18FAV45")
    assert path.parent == out / "sub-0001" / "ses-M000" / "pet"
    image, grid = nib.load(path), Grid(SHAPE, 12.0)
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image.affine, grid.affine)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    assert image.get_data_dtype() == np.float32
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"synthetic, not for clinical use"
    model = Model.load(folder)
    expected = model.synthesise(mri(1), 65.0, "M", seed=derive_seed(0, "sub-0001", "ses-M000"))
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), expected[0])
    sidecar = json.loads(sidecar_path(path).read_text())
    assert sidecar["synthetic"] is True
    assert sidecar["notice"] == "synthetic, not for clinical use"
    assert (sidecar["method"], sidecar["condition"], sidecar["tracer"]) == ("Plain", "factual", "amyloid")
    assert sidecar["prompt"] == {"age": 65.0, "sex": "M"}
    assert sidecar["model"]["sha256"] == sha256(folder / "model.safetensors")
    assert sidecar["intensity"] == {"kind": "fixed", "suvr_range": [0.0, 3.0]}
    assert sidecar["Units"] == "1 (SUVR = 3 × value)"
    assert (sidecar["seed"], sidecar["steps"]) == (0, None)
    timing = json.loads((out / "timing.json").read_text())
    assert timing["sessions"] == 5
    voxels, width = np.prod(SHAPE), 2
    flop = 2 * voxels * (27 * width + width * 2)  # of both volumes: two convolutions, two operations a weight
    assert timing["gflop_per_volume"] == pytest.approx(flop / 2 / 1e9)


def test_attention_is_counted_on_a_cpu():
    q, k, v = (torch.randn(1, 2, n, 8) for n in (5, 7, 7))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert counter.get_total_flops() == 2 * (2 * 5 * 7 * 8) * 2  # QKᵀ and its product with V, two heads


def test_a_person_does_not_depend_on_the_others(synthesise, people):
    everyone, order = volumes(synthesise("all")), [3, 1]
    few = volumes(synthesise("few", people.iloc[order].reset_index(drop=True), lambda i: mri(order[i])))
    assert len(everyone) == 10
    assert len(few) == 4
    assert few == {path: digest for path, digest in everyone.items() if path in few}


def test_seed_and_prompt_change_the_volume_and_nothing_else_does(synthesise):
    plain = volumes(synthesise("a"))
    assert volumes(synthesise("b")) == plain
    for changed in (synthesise("c", seed=1), synthesise("d", condition="age_100")):
        assert not volumes(changed).items() & plain.items()
    unsaid = volumes(synthesise("e", condition="no_age"))
    assert {path[:8] for path in plain if unsaid[path] == plain[path]} == {"sub-0004"}  # whose age is not known


def test_finished_volumes_stay_and_stale_ones_are_made_again(synthesise):
    out = synthesise()
    expected = volumes(out)
    lost = next(out.rglob("sub-0002*18FAV1451*.json"))
    lost.unlink()  # as if killed between a volume and its sidecar
    seen = []

    def counted(i):
        seen.append(i)
        return mri(i)

    for _ in range(2):
        synthesise(mri=counted)
        assert seen == [2]
        assert volumes(out) == expected
    synthesise(mri=counted, seed=3)
    assert seen == [2, 0, 1, 2, 3, 4]
    assert volumes(out) != expected


def test_steps_reach_the_method(tmp_path, people, synthesise):
    config = make_config(tmp_path, methods={"ResDM": tiny_resdm(steps=6, sampling_steps=4)})
    torch.manual_seed(0)
    folder = save_profile_model(tmp_path / "m", build_method(config.method("ResDM"), SHAPE), config, "ResDM")
    model, seen = Model.load(folder), []
    model.method.predict = lambda x, mri, t, *_: seen.append(t) or x
    synthesise("a", people[:1], model=model)
    synthesise("b", people[:1], model=model, steps=2)
    assert len(seen) == 4 + 2
    steps = [json.loads(next((tmp_path / name).rglob("*_pet.json")).read_text())["steps"] for name in "ab"]
    assert steps == [4, 2]


@pytest.mark.parametrize(("broken", "message"), [
    (np.zeros((8, 8, 8)), r"sub-0000 ses-M000: MRI of \(8, 8, 8\) voxels; the model works on \(16, 16, 16\) of"),
    (np.full(SHAPE, np.nan), "4096 voxels are not finite"),
    (np.full(SHAPE, 7.0), r"intensities from 7 to 7; expected \[0, 1\]"),
])  # fmt: skip
def test_a_volume_that_does_not_fit_is_named(synthesise, broken, message):
    with pytest.raises(SynthesisError, match=message):
        synthesise(mri=lambda i: broken)


@pytest.mark.parametrize(("age", "sex", "message"), [(7.5, "M", r"age 7\.5 is outside"), (75, "W", "unknown sex 'W'")])
def test_an_impossible_person_is_named_before_any_work(synthesise, people, age, sex, message):
    people.loc[3, ["age", "sex"]] = [age, sex]
    with pytest.raises(ValueError, match=f"row 3: sub-0003 ses-M000: {message}"):
        synthesise(mri=lambda i: pytest.fail("work began"))


def test_output_that_is_no_number_is_not_written(folder, synthesise, tmp_path):
    model = Model.load(folder)
    torch.nn.init.constant_(model.method.prompt_weights, math.nan)
    with pytest.raises(SynthesisError, match=r"sub-0000 ses-M000: .*output is not finite"):
        synthesise(model=model)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


# ── shards ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("condition", ["factual", "shuffled_age"])
def test_parts_made_apart_are_the_files_of_one_call(synthesise, people, condition):
    ages = people.assign(age=[60.0, 65.0, 70.0, 75.0, 80.0])
    whole, made = synthesise("one", ages, condition=condition), []
    for part in (2, 3, 1):  # in any order
        out = synthesise("three", ages, condition=condition, shard=(part, 3))
        made.append(len(volumes(out)))
        assert json.loads((out / f"timing_{part}of3.json").read_text())["sessions"] == (2, 2, 1)[part - 1]
    assert made == [4, 6, 10]
    assert volumes(out) == volumes(whole)
    for path in whole.rglob("*_pet.json"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    assert volumes(synthesise("three", ages, condition=condition)) == volumes(whole)  # finds everything there


def test_the_parts_costs_are_joined_by_the_call_that_finds_all_made(synthesise):
    for part in (1, 2):
        out = synthesise(shard=(part, 2))
    costs = [json.loads((out / f"timing_{part}of2.json").read_text()) for part in (1, 2)]
    measured = [{"seconds": 7.5, "seconds_per_session": 2.0}, {"seconds": 12.0, "seconds_per_session": 4.5}]
    for part, (cost, measures) in enumerate(zip(costs, measured, strict=True), start=1):
        (out / f"timing_{part}of2.json").write_text(json.dumps(cost | measures))
    synthesise()
    joined = json.loads((out / "timing.json").read_text())
    assert joined == costs[0] | {"sessions": 5, "seconds": 19.5, "seconds_per_session": 3.0, "shards": 2}  # 3·2 + 2·4.5
    (out / "timing.json").unlink()
    for fault in ({"sessions": 1}, {"steps": 99}, {"device": "cuda"}):  # made in two goes, or elsewhere, or otherwise
        (out / "timing_2of2.json").write_text(json.dumps(costs[1] | fault))
        synthesise()
        assert not (out / "timing.json").exists()
    (out / "timing_2of2.json").unlink()
    synthesise()
    assert not (out / "timing.json").exists()


@pytest.mark.parametrize("part", [0, 3])
def test_an_impossible_shard_is_refused(synthesise, part):
    with pytest.raises(ValueError, match=r"expected i/n with 1 ≤ i ≤ n"):
        synthesise(shard=(part, 2))


# ── one person ────────────────────────────────────────────────────────────────────────────────────


def test_one_mri(folder, tmp_path):
    prompt, named = {"age": 74, "sex": "F"}, {"prefix": "sub-07_ses-1", "source": {"file": "x.nii.gz"}}
    files, pets = synthesise_mri(Model.load(folder), mri(0), tmp_path / "out", **prompt, **named, seed=4)
    assert [files[key].name for key in ("amyloid", "tau", "mri")] == [
        "sub-07_ses-1_trc-18FAV45_space-MNI152NLin2009aSym_desc-synth_pet.nii.gz",
        "sub-07_ses-1_trc-18FAV1451_space-MNI152NLin2009aSym_desc-synth_pet.nii.gz",
        "sub-07_ses-1_space-MNI152NLin2009aSym_desc-preproc_T1w.nii.gz",
    ]
    pet = Model.load(folder).synthesise(mri(0), 74, "F", seed=4)
    for channel, tracer in enumerate(("amyloid", "tau")):
        image = nib.load(files[tracer])
        np.testing.assert_array_equal(pets[tracer], pet[channel])
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), 3 * pet[channel])  # SUVR
        np.testing.assert_array_equal(image.affine, Grid(SHAPE, 12.0).affine)
    sidecar = json.loads(sidecar_path(files["tau"]).read_text())
    assert sidecar["prompt"] == {"age": 74, "sex": "F"}
    assert sidecar["source"] == {"file": "x.nii.gz"}
    assert (sidecar["seed"], sidecar["tracer"]) == (4, "tau")


@pytest.mark.parametrize(("name", "prefix"), [
    ("sub-07_ses-M12_acq-mprage_run-1_T1w.nii.gz", "sub-07_ses-M12_run-1"),  # a PET has no acq-
    ("/a/b/single_subject_T1w.nii.gz", "sub-singlesubject"),
    ("T1.nii", "sub-T1"),
    ("__.nii.gz", "sub-01"),
])  # fmt: skip
def test_names_of_outputs(name, prefix):
    assert bids_prefix(name) == prefix
