"""The explorer: its volumes, its cache, its widgets, a headless run and a browser."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import nbformat
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, changed
from PIL import Image
from stored_cohort import make_config, write_volumes

from resdm.baselines.linear import DemographicsConfig
from resdm.io import write_csv
from resdm.settings import derive_seed
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.evaluation.suvr import regional_means, to_suvr
from resdm_suite.paths import SPACE
from resdm_suite.profiles import load_config

pytest.importorskip("anywidget", reason="no anywidget: pip install -e '.[notebooks]'")

from resdm_suite.apps.explorer import Explorer, ExplorerModel, Request, step_choices
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.reporting.style import TRACER_TITLES
from resdm_suite.reporting.views import Scene, columns, orthogonal_views, slice_png

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


class Shown(Explorer):
    """An explorer in a browser that keeps what it receives: ``page``, ``values``, ``pictures`` by plane, ``drawn``."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.page, self.values, self.pictures, self.drawn, self.busy = {}, {}, {}, [], []
        self.views.send = self.receive
        self._on_message(self.views, {"ready": True}, [])

    def receive(self, message, pictures=()):
        json.dumps(message)
        self.page, count = message.get("page", self.page), len(self.page.get("columns", ()))
        for i, plane in enumerate(message.get("planes", "")):
            self.pictures[plane] = pictures[i * count : (i + 1) * count]
        self.values = message if "here" in message else self.values
        self.drawn += [message["planes"]] if "planes" in message else []
        self.busy += [message["busy"]] if "busy" in message else []

    def titles(self):
        return [f"{column['tracer']} {column['title']}".strip() for column in self.page["columns"]]


@pytest.fixture
def explorer(model):
    shown = Shown(model)
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
    own = model.scene(changed(asked, age=age))
    assert all(np.abs(own.change[tracer]).max() == 0 for tracer in own.change)


def test_the_prompt_states_a_test_persons_further_attributes(tmp_path):
    """The mean under the factual prompt is the stored prediction."""
    config = make_config(tmp_path, methods={"demographics": DemographicsConfig(fields=("age", "sex", "dose"))})
    write_volumes(config, ["train"] * 6 + ["validation"] * 2 + ["test"] * 2)
    index = read_index(config, None).assign(t1w=lambda rows: rows["tau"])  # these models use no MRI
    index[["amyloid_suvr", "tau_suvr", "amyloid_status", "tau_status"]] = float("nan")
    index["dose"] = [1.0, 2.0, 3.5, 1.5, 4.0, 3.0, 2.5, 1.2, 3.3, 1.8]
    write_csv(config.volumes / "index.csv", index)
    train_method(config, "demographics", progress=False)
    predicted = synthesise_method(config, "demographics", progress=False)
    explorer = Shown(ExplorerModel(config, "demographics"))
    (path,) = (predicted / explorer.source.split(" ")[0]).rglob("*18FAV1451*_pet.nii.gz")
    stored = to_suvr(read_volume(path, explorer.model.model.grid), config.preprocess.suvr_range["tau"])
    np.testing.assert_allclose(explorer.scene.pet["tau"], stored, rtol=1e-5)
    assert explorer.page["title"].endswith("prompt 68 years, F, dose 3.3")
    stated = json.loads((explorer.export() / "settings.json").read_text())
    assert stated["request"]["dose"] == stated["factual_prompt"]["dose"] == 3.3


def test_earlier_prompts_need_no_synthesis(explorer):
    explorer.seed.value = 17  # of which no other test has samples in the cache
    model, first = explorer.model, explorer.pictures.copy()
    made = model.synthesised
    explorer.age.value = 90
    assert model.synthesised > made
    assert explorer.request.age == 90
    assert explorer.busy[-2:] == ["synthesising …", ""]
    changes = {"Aβ-PET change by prompt", "tau-PET change by prompt"}
    assert changes <= set(explorer.titles())
    assert explorer.pictures != first
    made = model.synthesised
    explorer.factual.click()
    assert model.synthesised == made
    assert explorer.pictures == first
    assert not changes & set(explorer.titles())
    assert explorer.request.age == model.factual_prompt(explorer.request.source)[0]  # not the slider's whole years


def test_only_planes_that_move_are_drawn(explorer):
    made, first, drawn = explorer.model.synthesised, explorer.pictures.copy(), len(explorer.drawn)
    explorer.cuts["z"].value += 20
    assert [plane for plane in "xyz" if explorer.pictures[plane] != first[plane]] == ["z"]
    explorer.cuts["z"].value -= 20
    assert explorer.pictures == first
    place = dict(zip("xyz", explorer.point, strict=True))
    explorer._on_message(explorer.views, {"point": place | {"x": -20, "y": 9}}, [])  # a click into the plane of z
    assert explorer.drawn[drawn:] == ["z", "z", "x", "y"]
    assert (explorer.point, explorer.model.synthesised) == ((-20, 9, place["z"]), made)
    assert explorer.values["point"] == place | {"x": -20, "y": 9}
    explorer._on_message(explorer.views, {"ready": True}, [])  # the page is loaded again
    assert explorer.drawn[-1] == "xyz"


def test_real_pet_and_error_stand_beside_the_synthetic_one(explorer, model):
    for source, row in model.people.items():
        explorer.person.value = source
        real = {t: name for t, name in TRACER_TITLES.items() if row[f"present_{t}"]}
        assert f"{row['age']:.0f} years, {row['sex']}" in explorer.person.label
        assert explorer.person.label.endswith(f"real {', '.join(real.values())}")
        expected = {name: ["real", "synthetic", "error"] for name in real.values()} | {"": ["T1"]}
        for name in ("", *TRACER_TITLES.values()):
            shown = [column["title"] for column in explorer.page["columns"] if column["tracer"] == name]
            assert shown == expected.get(name, ["synthetic"])
        cortex = [column["cortex"] for column in explorer.page["columns"]]
        values = zip(explorer.columns, explorer.values["here"], cortex, strict=True)
        errors = {column.tracer: (column.volume, *texts) for column, *texts in values if column.title == "error"}
        for tracer, (shown, *texts) in errors.items():
            low, high = model.config.preprocess.suvr_range[tracer]
            pet = low + (high - low) * read_volume(model.config.volumes / row[tracer], model.model.grid)
            error = explorer.scene.pet[tracer] - pet
            np.testing.assert_allclose(shown, error, atol=1e-6)
            here = error[explorer.scene.voxel(explorer.point)]
            summary = regional_means(error, explorer.scene.grid, tracer)["summary"]
            assert texts == [f"{value:+.2f}".replace("-", "−") for value in (here, summary)]


@pytest.mark.parametrize(("privacy", "real"), [("individual", True), ("aggregate", False)])
def test_a_stored_picture_shows_single_real_pet_only_where_figures_may(explorer, monkeypatch, privacy, real):
    monkeypatch.setattr(explorer.model, "config", changed(explorer.model.config, privacy=privacy))
    explorer._on_message(explorer.views, {"ready": True}, [])
    assert any(title.endswith("real") for title in explorer.titles())  # in view in both
    figure = {axes.get_title().split("\n")[-1] for axes in explorer.figure().axes}
    assert {"real", "error"} & figure == ({"real", "error"} if real else set())


def test_niivue_holds_the_t1_and_the_synthetic_pet_that_is_shown(explorer, model, monkeypatch):
    overlay = explorer.children[-1]
    assert overlay.viewer not in overlay.children
    overlay.choice.value = "tau"
    for age in (61, 88):  # a new prompt, a new overlay
        explorer.age.value = age
        assert overlay.children[-1] is overlay.viewer
        for shown, volume in zip(overlay.viewer.volumes, (explorer.scene.mri, explorer.scene.pet["tau"]), strict=True):
            image = nib.Nifti1Image.from_bytes(shown.data)
            np.testing.assert_allclose(image.get_fdata(), volume, atol=1e-6)
            np.testing.assert_allclose(image.affine, explorer.scene.grid.affine)
    overlay.choice.value = None
    assert overlay.viewer not in overlay.children
    monkeypatch.setattr(model, "config", changed(model.config, privacy="aggregate"))
    private = Shown(model)
    assert private.overlay not in private.children


def test_a_slice_has_the_colours_of_its_scale(explorer):
    column = next(column for column in explorer.columns if column.signed)
    flat = changed(column, volume=np.full(explorer.scene.grid.shape, 1e9))
    picture = Image.open(io.BytesIO(slice_png(flat, explorer.scene.grid, ("z", 0.0))))
    assert picture.size == (157, 191)  # millimetres
    red = [round(255 * part) for part in matplotlib.colormaps[column.cmap](255)[:3]]
    assert (np.asarray(picture.convert("RGB")) == red).all()
    column = columns(explorer.scene)[0]
    marked = np.zeros(explorer.scene.grid.shape)
    marked[-8:, -8:] = 1  # right, anterior: right and up in the picture
    picture = slice_png(changed(column, volume=marked), explorer.scene.grid, ("z", 0.0))
    levels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    assert levels[5, -5] > 200 > 50 > max(levels[-5, -5], levels[5, 5])


def test_a_prompt_can_be_empty(explorer):
    explorer.use_age.value = False
    explorer.sex.value = None
    assert (explorer.request.age, explorer.request.sex) == (None, None)
    assert np.abs(explorer.scene.change["amyloid"]).max() > 0


def test_another_person_comes_with_their_own_prompt_and_one_picture(explorer):
    drawn, other = len(explorer.drawn), list(explorer.model.people)[-1]
    explorer.person.value = other
    assert explorer.drawn[drawn:] == ["xyz"]
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
    assert (folder / "views.png").read_bytes().startswith(b"\x89PNG")
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
        image = nib.load(folder / f"{stem}_space-{SPACE}_{entity}.nii.gz")
        np.testing.assert_allclose(image.affine, explorer.scene.grid.affine)
        np.testing.assert_allclose(image.get_fdata(), volume, atol=1e-6)
        sidecar = json.loads((folder / f"{stem}_space-{SPACE}_{entity}.json").read_text())
        assert sidecar["Units"] == ("1 (T1 scaled to [0, 1])" if entity == "T1w" else "SUVR")


def test_intensities_without_a_scale_are_no_suvr(model, monkeypatch):
    """Each scan had its own scale in training: nothing shown or exported is called SUVR."""
    source = next(iter(model.people))
    literal = {"config": {"preprocess": {"intensity": "minmax"}}}
    model = ExplorerModel(model.config)  # one of its own: real PETs are cached in their unit
    monkeypatch.setattr(model, "model", changed(model.model, card=literal))
    shown = Shown(model)
    samples = [model.sample(shown.request, number)[1] for number in range(4)]
    np.testing.assert_allclose(shown.scene.pet["tau"], np.mean(samples, axis=0), atol=1e-6)
    shown.age.value = 90
    labels = {axes.get_xlabel() for axes in shown.figure().axes}
    assert {"PET in [0, 1]", "PET in [0, 1] − real", "PET in [0, 1] − factual"} <= labels
    assert labels - {""} == {column["unit"] for column in shown.page["columns"]}
    assert "SUVR" not in "".join(labels)
    folder = shown.export()
    for kind in ("mean", "change"):
        sidecar = folder / f"{source.replace(' ', '_')}_space-{SPACE}_trc-tau_desc-{kind}_pet.json"
        assert json.loads(sidecar.read_text())["Units"] == "1 (each scan scaled to [0, 1]; no SUVR)"


def test_errors_are_shown_above_the_views(explorer, tmp_path):
    shown, pictures = explorer.request, explorer.pictures.copy()
    explorer.file.value = str(tmp_path / "nobody.nii.gz")
    assert "neither a T1 file" in explorer.status.value
    assert (explorer.request, explorer.pictures) == (shown, pictures)
    assert explorer.busy[-1] == ""
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
    shown = Shown(allowed, str(broken))
    assert f"{broken}: cannot be read as NIfTI" in shown.status.value
    shown.cuts["x"].value += 5
    assert shown.export() is None
    assert shown.drawn == []
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
    assert (shown.drawn, shown.request.source) == (["xyz"], source)


def test_a_file_is_preprocessed_and_has_no_factual_prompt(config):
    t1 = next(config.source_root.rglob("*_T1w.nii.gz"))
    shown = Explorer(ExplorerModel(config, "ResDM", True), str(t1))
    shown.start()
    assert (shown.request.source, shown.request.age, shown.request.sex) == (str(t1), None, None)
    assert np.abs(shown.scene.change["tau"]).max() == 0
    assert shown.scene.real == {}
    assert shown.export().name.startswith(t1.name.removesuffix("_T1w.nii.gz"))


def test_the_seed_may_be_any_of_a_profile(model, monkeypatch):
    monkeypatch.setattr(model, "config", changed(model.config, seed=2**63 - 1))
    assert Explorer(model).seed.value == 2**63 - 1


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
    assert scene.voxel(point) == (10, 11, 12)
    assert scene.voxel((1e4, 1e4, -1e4)) == (grid.shape[0] - 1, grid.shape[1] - 1, 0)  # beyond the grid: the nearest
    figure = orthogonal_views(scene, point)
    assert {"L", "R", "P", "A"} <= {text.get_text() for axes in figure.axes for text in axes.texts}
    labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_title())}
    assert {"tau-PET\nsynthetic", "tau-PET\nchange by prompt", "SUVR", "SUVR − factual"} <= labels
    assert not any("SD" in label or "uncertain" in label for label in labels)


def test_runs_headless_by_papermill_and_stores_nobody(clone):
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
    assert "sub-" not in out.read_text()


@pytest.fixture
def jupyterlab(clone):
    """A server of JupyterLab in the clone: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(clone / "jupyter") for name in ("CONFIG", "DATA", "RUNTIME")}
    with subprocess.Popen(
        [BIN / "jupyter", "lab", f"--port={port}", "--no-browser", "--allow-root", "--IdentityProvider.token=",
         f"--ServerApp.root_dir={clone}", "--LabApp.expose_app_in_browser=True"], stderr=subprocess.DEVNULL,
        env=os.environ | folders | {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(ROOT / "configs" / "jupyter")},
    ) as server:  # fmt: skip
        yield f"http://127.0.0.1:{port}"
        server.terminate()


RUN_ALL = """async () => {
  const { context } = window.jupyterapp.shell.currentWidget;
  await context.sessionContext.ready;
  await context.sessionContext.session.kernel.info;
  window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""
CHANGED = """() => Object.fromEntries([..."xyz"].map((axis) => [axis,
  [...document.querySelectorAll(`.slice[data-axis=${axis}] img`)].map((image) => image.src).join()]))"""

WATCH_BUSY = """() => {
  const sign = document.querySelector(".resdm-views .busy");
  window.busy = [];
  new MutationObserver(() => window.busy.push(sign.textContent)).observe(sign, { childList: true });
}"""


@pytest.mark.slow
def test_a_slider_and_a_click_move_the_views_in_a_browser(clone, jupyterlab, page):
    notebook = clone / "notebooks" / "live.ipynb"
    notebook.write_text((ROOT / "notebooks" / "explore.ipynb").read_text().replace('\\"phantom\\"', '\\"smoke\\"'))
    page.set_default_timeout(120_000)
    for _ in range(1500):
        try:
            page.goto(f"{jupyterlab}/doc/tree/notebooks/live.ipynb")
            break
        except Exception:  # the server starts
            time.sleep(0.2)
    page.errors.clear()
    page.wait_for_selector(".jp-CodeCell")
    page.evaluate(RUN_ALL)
    page.wait_for_selector(".resdm-views .slice img[src^=blob]")
    for planes, move in {
        "z": lambda: page.locator(".resdm-z [role=slider]").press("ArrowRight"),
        "xy": lambda: page.locator(".slice[data-axis=z]").nth(1).click(position={"x": 20, "y": 30}),
    }.items():
        before, start = page.evaluate(CHANGED), time.perf_counter()
        move()
        while [axis for axis, source in page.evaluate(CHANGED).items() if source != before[axis]] != [*planes]:
            assert time.perf_counter() - start < 120
        print(f"planes {planes} moved in {time.perf_counter() - start:.2f} s")
        page.wait_for_timeout(500)
        assert {axis for axis, source in page.evaluate(CHANGED).items() if source != before[axis]} == {*planes}
    page.evaluate(WATCH_BUSY)
    page.locator(".resdm-age [role=slider]").press("End")
    page.get_by_text("change by prompt", exact=True).first.wait_for()
    assert page.evaluate("window.busy")[0] == "synthesising …"
    page.get_by_role("button", name="tau-PET").click()
    canvas, start = page.locator("canvas"), time.perf_counter()
    while len(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB").getcolors(2**20)) < 500:  # blank until drawn
        assert time.perf_counter() - start < 60
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    assert page.errors == []
    assert "Explorer" in notebook.read_text()
    assert "sub-" not in notebook.read_text()
