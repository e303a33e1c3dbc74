"""The explorer: its volumes, its cache, its widgets, a headless run and a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from resdm.settings import derive_seed
from resdm_suite.evaluation.image_quality import read_volume
from resdm_suite.profiles import load_config

pytest.importorskip("ipywidgets", reason="no ipywidgets: pip install -e '.[notebooks]'")

from resdm_suite.apps.explorer import Explorer, ExplorerModel, Request, explore, step_choices
from resdm_suite.apps.training import train_method
from resdm_suite.reporting.views import Scene, orthogonal_views

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def clone(smoke_folder, tmp_path_factory):
    """Configurations, notebooks, and a smoke cohort with a trained ResDM."""
    folder = shutil.copytree(smoke_folder, tmp_path_factory.mktemp("explorer") / "clone")
    train_method(load_config(folder / "configs" / "smoke.yaml"), "ResDM", progress=False)
    return folder


@pytest.fixture
def config(clone):
    return load_config(clone / "configs" / "smoke.yaml")


@pytest.fixture(scope="module")
def model(clone):
    return ExplorerModel(load_config(clone / "configs" / "smoke.yaml"))


@pytest.fixture
def explorer(model):
    shown = Explorer(model)
    assert "color" not in shown.status.value, shown.status.value
    return shown


def test_scene_is_mean_and_change_of_the_samples(model):
    source = next(iter(model.people))
    age, sex = model.factual_prompt(source)
    asked = Request(source, 90.0, sex, 2, seed=3, samples=3)
    scene = model.scene(asked)
    high = model.config.preprocess.suvr_range["tau"][1]
    mri = read_volume(model.config.volumes / model.people[source]["t1w"], model.model.grid)

    def by_hand(years):
        seeds = [derive_seed(3, source, number) for number in range(3)]
        return high * np.stack([model.model.synthesise(mri, years, sex, seed=seed, steps=2)[1] for seed in seeds])

    prompted, factual = by_hand(90.0), by_hand(age)
    np.testing.assert_allclose(scene.pet["tau"], prompted.mean(0), atol=1e-6)
    np.testing.assert_allclose(scene.change["tau"], prompted.mean(0) - factual.mean(0), atol=1e-6)
    own = model.scene(dataclasses.replace(asked, age=age))
    assert all(np.abs(own.change[tracer]).max() == 0 for tracer in own.change)


def test_cuts_and_earlier_prompts_need_no_synthesis(explorer):
    model, first = explorer.model, explorer.image.value
    made = model.synthesised
    explorer.cuts[2].value += 20
    assert model.synthesised == made
    assert explorer.image.value != first
    explorer.cuts[2].value -= 20
    assert explorer.image.value == first
    explorer.age.value = 90
    assert model.synthesised > made
    assert explorer.request.age == 90
    assert explorer.image.value != first
    made = model.synthesised
    explorer.factual.click()
    assert model.synthesised == made
    assert explorer.image.value == first
    assert explorer.request.age == model.factual_prompt(explorer.request.source)[0]  # not the slider's whole years


def test_a_prompt_can_be_empty(explorer):
    explorer.use_age.value = False
    explorer.sex.value = None
    assert (explorer.request.age, explorer.request.sex) == (None, None)
    assert np.abs(explorer.scene.change["amyloid"]).max() > 0


def test_another_person_comes_with_their_own_prompt_and_one_picture(explorer):
    drawn, other = explorer.draw_count, list(explorer.model.people)[-1]
    explorer.person.value = other
    assert explorer.draw_count == drawn + 1
    assert (explorer.request.source, explorer.request.age) == (other, explorer.model.factual_prompt(other)[0])


def test_the_cache_drops_the_sample_that_was_not_shown_for_the_longest_time(model, monkeypatch):
    source = next(iter(model.people))
    size = model.sample(Request(source, 60.0, "F", 1, 0, 1), 0).nbytes
    monkeypatch.setattr("resdm_suite.apps.explorer.MAX_CACHE_BYTES", 2 * size)
    small = ExplorerModel(model.config)
    counts = []
    for age in (61.0, 62.0, 61.0, 63.0, 61.0, 62.0):
        small.sample(Request(source, age, "F", 1, 0, 1), 0)
        counts.append(small.synthesised)
    assert counts == [1, 2, 2, 3, 3, 4]


def test_export_writes_what_is_shown(explorer):
    explorer.age.value = 88
    folder = explorer.export()
    assert (folder / "views.png").read_bytes() == explorer.image.value
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["request"]["age"] == 88
    assert settings["synthetic"] is True
    assert "not a reproduction" in settings["cohort_notice"]
    stem = explorer.request.source.replace(" ", "_")
    for entity, volume in {
        "trc-tau_desc-change_pet": explorer.scene.change["tau"],
        "trc-amyloid_desc-mean_pet": explorer.scene.pet["amyloid"],
        "T1w": explorer.scene.mri,
    }.items():
        image = nib.load(folder / f"{stem}_space-MNI152_{entity}.nii.gz")
        np.testing.assert_allclose(image.affine, explorer.scene.grid.affine)
        np.testing.assert_allclose(image.get_fdata(), volume, atol=1e-6)
        sidecar = json.loads((folder / f"{stem}_space-MNI152_{entity}.json").read_text())
        assert sidecar["Units"] == ("1 (T1 scaled to [0, 1])" if entity == "T1w" else "SUVR")


def test_intensities_without_a_scale_are_no_suvr(model, monkeypatch):
    """Each scan had its own scale in training: nothing shown or exported is called SUVR."""
    card, source = model.model.card, next(iter(model.people))
    literal = dataclasses.replace(card.config.preprocess, intensity="minmax")
    changed = dataclasses.replace(card, config=dataclasses.replace(card.config, preprocess=literal))
    monkeypatch.setattr(model, "model", dataclasses.replace(model.model, card=changed))
    shown = Explorer(model)
    samples = [model.sample(shown.request, number)[1] for number in range(4)]
    np.testing.assert_allclose(shown.scene.pet["tau"], np.mean(samples, axis=0), atol=1e-6)
    labels = {axes.get_xlabel() for axes in shown.figure().axes}
    assert {"PET in [0, 1]", "PET in [0, 1] − factual"} <= labels
    assert "SUVR" not in shown.readout.value + "".join(labels)
    folder = shown.export()
    for kind in ("mean", "change"):
        sidecar = folder / f"{source.replace(' ', '_')}_space-MNI152_trc-tau_desc-{kind}_pet.json"
        assert json.loads(sidecar.read_text())["Units"] == "1 (each scan scaled to [0, 1]; no SUVR)"


def test_errors_are_shown_below_the_picture(explorer, tmp_path):
    shown, picture = explorer.request, explorer.image.value
    explorer.file.value = str(tmp_path / "nobody.nii.gz")
    assert "neither a T1 file" in explorer.status.value
    assert (explorer.request, explorer.image.value) == (shown, picture)
    real = tmp_path / "sub-9_T1w.nii.gz"
    nib.save(explorer.scene.grid.image(explorer.scene.mri), real)
    explorer.file.value = str(real)
    assert "phantoms only" in explorer.status.value  # a phantom-trained model and a file
    explorer.person.value = shown.source
    assert explorer.request == shown


def test_a_corrupt_scan_is_reported_and_cannot_be_cut_or_exported(clone, model, tmp_path):
    broken = tmp_path / "sub-8_T1w.nii.gz"
    broken.write_bytes(b"\x1f\x8b no gzip")
    allowed = ExplorerModel(model.config, allow_phantom_model=True)
    shown = Explorer(allowed, str(broken))
    assert f"{broken}: cannot be read as NIfTI" in shown.status.value
    shown.cuts[0].value += 5
    assert shown.export() is None
    assert (shown.draw_count, shown.image.value) == (0, b"")
    source = next(iter(allowed.people))
    volume = allowed.config.volumes / allowed.people[source]["t1w"]
    whole = volume.read_bytes()
    for content in (b"no NIfTI", whole[: len(whole) // 2]):
        try:
            volume.write_bytes(content)
            shown.person.value = None
            shown.person.value = source
        finally:
            volume.write_bytes(whole)
        assert "#B00020" in shown.status.value
    shown.synthesise()
    assert (shown.draw_count, shown.request.source) == (1, source)


def test_a_file_is_preprocessed_and_has_no_factual_prompt(config):
    t1 = next(config.source_root.rglob("*_T1w.nii.gz"))
    shown = explore(config, person=str(t1), allow_phantom_model=True)
    assert (shown.request.source, shown.request.age, shown.request.sex) == (str(t1), None, None)
    assert np.abs(shown.scene.change["tau"]).max() == 0
    assert shown.export().name.startswith(t1.name.removesuffix("_T1w.nii.gz"))


def test_step_choices_are_those_a_method_takes():
    methods = load_config("phantom").methods
    assert step_choices(methods["ResDM"]) == list(range(1, 16))
    assert step_choices(methods["regression"]) == []
    assert all(methods["DDPM"].steps % n == 0 for n in step_choices(methods["DDPM"]))
    assert methods["DDPM"].sampling_steps in step_choices(methods["DDPM"])


def test_views_read_the_voxel_under_the_cross_hairs_and_show_no_spread(model):
    grid = model.model.grid
    volume = np.zeros(grid.shape)
    volume[10, 11, 12] = 1.5
    point = tuple(grid.affine[:3, 3] + grid.voxel_mm * np.array([10, 11, 12]))
    scene = Scene(grid, volume / 2, {"tau": volume}, {"tau": -volume})
    assert scene.at(point) == {"tau": {"pet": 1.5, "change": -1.5}}
    assert scene.at((1e4, 1e4, 1e4))["tau"]["pet"] == 0  # beyond the grid: its nearest voxel
    figure = orthogonal_views(scene, point)
    assert {"L", "R", "P", "A"} <= {text.get_text() for axes in figure.axes for text in axes.texts}
    labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_title())}
    assert {"tau-PET\nsynthetic", "tau-PET\nchange by the prompt", "SUVR", "SUVR − factual"} <= labels
    assert not any("SD" in label or "uncertain" in label for label in labels)


def test_runs_headless_by_papermill(clone):
    out = clone / "explored.ipynb"
    run = subprocess.run(
        [BIN / "papermill", clone / "notebooks" / "explore.ipynb", out, "--cwd", clone, "-k", "resdm",
         "--no-progress-bar", "-r", "config", "smoke"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(ROOT / "configs" / "jupyter")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "encryption" not in run.stderr
    shown = [o for cell in nbformat.read(out, as_version=4).cells for o in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
