"""The private browser page: the ONNX model equals torch, and so does the page in a browser without network."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from browser import open_page
from conftest import ROOT, random_batch, tiny_network, tiny_prior, tiny_resdm
from tiny_methods import SHAPE, PlainConfig, build, make_config, save_profile_model

from resdm.batch import TRACERS
from resdm.checkpoint import CheckpointError
from resdm.io import write_json
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps import cli, page
from resdm_suite.apps.model_folder import PROVENANCE
from resdm_suite.apps.onnx_model import OneStep, prompt_parts, prompt_rows
from resdm_suite.apps.prediction import Model
from resdm_suite.cohorts.readers import download
from resdm_suite.cohorts.readers.download import DownloadError

ARCHIVES = Path(os.environ.get("RESDM_NPM", ROOT / "work" / "npm"))
FULL = {"stem": "haar", "linear_path": True}
PROMPTS = [(74.0, "F"), (None, None), (81.5, "M"), (None, "F"), (101.2, None)]


def like_a_t1(seed: int) -> np.ndarray:
    """A T1 as preprocessing writes it, on the tiny grid: 0 outside the brain."""
    grid = Grid(SHAPE, 12.0)
    noise = 0.1 * np.random.default_rng(seed).random(SHAPE)
    return np.float32(np.clip(mni_map("t1", grid) + noise, 0, 1) * mni_map("brain", grid))


def model_of(folder: Path, kind: str = "phantom", **settings) -> Path:
    """A model folder with a fitted linear path, and a network whose output is not near 0."""
    options = {"shift_voxels": 0, "flip": False}  # as the linear path needs it
    config = make_config(folder, kind=kind, methods={"ResDM": tiny_resdm(**settings)}, **options)
    method = build(config, "ResDM")
    brain = torch.from_numpy(mni_map("brain", Grid.of(config.preprocess.grid)).copy())
    batch = random_batch(6, method.shape)
    batch = replace(batch, mri=torch.from_numpy(np.stack([like_a_t1(seed) for seed in range(6)]))[:, None],
                    pet=brain * (0.3 + 0.3 * batch.pet))  # fmt: skip
    method.prepare(0, None, [batch])
    torch.nn.init.normal_(method.unet.outlet[-1].weight, std=0.03)
    return save_profile_model(folder / "ResDM", method, config, "ResDM")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("page"), network=tiny_network(**FULL))


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(folder, "cpu")


@pytest.fixture(scope="module")
def t1():
    return like_a_t1(7)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="no onnx: pip install -e '.[page]'")
    return page.export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


def expected(model: Model, t1: np.ndarray, age: float | None, sex: str | None, **other) -> dict[str, np.ndarray]:
    """What `resdm synthesise --steps 1 --samples 1` computes, in SUVR."""
    pets = model.synthesise(t1, age, sex, **({"seed": model.card.config.seed, "steps": 1} | other))
    return {tracer: model.to_suvr(pet, tracer)[0] for tracer, pet in zip(TRACERS, pets, strict=True)}


# ── the model in ONNX ─────────────────────────────────────────────────────────────────────────────


def test_onnx_equals_torch_for_every_prompt(model, t1, exported):
    onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install -e '.[page]'")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    synthetic = {}
    for prompt in PROMPTS:
        inputs = {"t1": np.ascontiguousarray(t1.T), "rows": prompt_rows(model.method.prior, *prompt).numpy()}
        synthetic[prompt] = dict(zip(TRACERS, session.run([*TRACERS], inputs), strict=True))
        for tracer, suvr in expected(model, t1, *prompt).items():
            np.testing.assert_allclose(synthetic[prompt][tracer].T, suvr, rtol=0, atol=1e-4)
    one, other = (synthetic[prompt]["amyloid"] for prompt in PROMPTS[:2])
    assert np.abs(one - other).max() > 1e-2  # the prompt acts
    assert np.abs(one - synthetic[PROMPTS[0]]["tau"]).max() > 1e-2
    assert np.abs(one.T - expected(model, t1, *PROMPTS[0], seed=1)["amyloid"]).max() > 1e-2  # and so does the noise


@pytest.mark.parametrize("settings", [
    {"network": tiny_network(global_path=False)},
    {"network": tiny_network(**FULL), "prior": replace(tiny_prior(), context="pooled"), "eta": "geometric"},
], ids=["as published", "pooled"])  # fmt: skip
def test_the_exported_module_equals_the_method(tmp_path, t1, settings):
    model = Model.load(model_of(tmp_path, **settings), "cpu")
    for prompt in PROMPTS:
        with torch.no_grad():
            synthetic = OneStep(model)(torch.from_numpy(t1.T.copy()), prompt_rows(model.method.prior, *prompt))
        for volume, suvr in zip(synthetic, expected(model, t1, *prompt).values(), strict=True):
            np.testing.assert_allclose(volume.permute(2, 1, 0), suvr, rtol=0, atol=1e-4)


def test_prompts_are_spelt_as_the_tokeniser_does(model):
    prior = model.method.prior
    parts = json.loads(json.dumps(prompt_parts(prior)))
    for age in (None, 18.0, 55.5, 67.9, 80.4, 99.9, 110.0):
        for sex in (None, "F", "M"):
            for forms, rows in zip(parts["prompts"], prompt_rows(prior, age, sex).tolist(), strict=True):
                form = forms[sex or ""]
                spelt = form["plain"]
                if age is not None:
                    spelt = form["before"] + [parts["spelling"][one] for one in f"{age:.1f}"] + form["after"]
                assert spelt + [parts["pad"]] * (77 - len(spelt)) == rows


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def test_models_that_are_not_for_a_page(tmp_path, folder, capsys):
    config = make_config(tmp_path, kind="phantom", methods={"Plain": PlainConfig()})
    plain = save_profile_model(tmp_path / "Plain", build(config, "Plain"), config, "Plain")
    with pytest.raises(CheckpointError, match=r"Plain is no residual diffusion \(tiny_plain\)"):
        OneStep(Model.load(plain, "cpu"))
    assert cli.main(["page", str(plain), "--out", str(tmp_path / "page")]) == cli.BAD_INPUT
    assert "Plain is no residual diffusion (tiny_plain)" in capsys.readouterr().err  # before anything is downloaded
    real = model_of(tmp_path, kind="other")
    assert cli.main(["page", str(real), "--out", str(tmp_path / "page")]) == cli.BAD_INPUT
    assert "it is not known whether it memorised its training people" in capsys.readouterr().err
    one_tracer = model_of(tmp_path)
    write_json(one_tracer / PROVENANCE, {"scans": {"amyloid": {"18FFBB": 9}, "tau": {}}})
    assert cli.main(["page", str(one_tracer), "--out", str(tmp_path / "page")]) == cli.BAD_INPUT
    assert "trained without tau PET, and the page shows both" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_attributes_that_the_page_leaves_out_are_stated(model, monkeypatch):
    assert "Left out of the prompt" not in dict(page._texts(model)["facts"])
    monkeypatch.setattr(page, "further", lambda fields: ["plasma", "education"])
    assert dict(page._texts(model)["facts"])["Left out of the prompt"] == "plasma, education"


def test_libraries_are_checked_and_without_network_there_is_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DELAYS", ())
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match=r"(?s)127\.0\.0\.1:9.*`npm pack onnxruntime-web@.* @niivue/niivue@.*--ass"):
        page.fetch_packages(tmp_path, progress=False)
    (tmp_path / "file.js").write_text("1")
    name = tmp_path / "lab-tool-1.0.tgz"
    with tarfile.open(name, "w:gz") as archive:
        archive.add(tmp_path / "file.js", "package/dist/file.js")
    digest = base64.b64encode(hashlib.sha512(name.read_bytes()).digest()).decode()
    tool = page.Package("@lab/tool", "1.0", name.stat().st_size, digest, "MIT", ("dist/file.js",))
    assert tool.url == "http://127.0.0.1:9/@lab/tool/-/tool-1.0.tgz"
    monkeypatch.setattr(page, "PACKAGES", (tool,))
    assert page.fetch_packages(tmp_path, progress=False) == {tool: name}  # there already
    name.write_bytes(name.read_bytes()[:-1] + b"\1")
    with pytest.raises(DownloadError, match=r"lab-tool-1\.0\.tgz: SHA-512 .*, expected .*; delete it"):
        page.fetch_packages(tmp_path, progress=False)


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def address(folder, exported, tmp_path_factory):
    """The page of the model, served on this machine."""
    if not all((ARCHIVES / package.archive).is_file() for package in page.PACKAGES):
        pytest.skip(f"no archives of the page's libraries in {ARCHIVES}: run `resdm page`, or set RESDM_NPM")
    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:  # the model was exported above
        patch.setattr(page, "export_onnx", lambda _, path: path.write_bytes(exported.read_bytes()))
        text = page.write_page(folder, out, assets=ARCHIVES, progress=False)
    assert f"--directory {out}" in text
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def opened(address):
    """The page, loaded, without network from then on; ``requested`` lists what it asks for."""
    with open_page() as tab:
        tab.requested = []
        tab.on("request", lambda request: tab.requested.append(request.url))
        tab.goto(address)
        tab.wait_for_selector('#status:has-text("Ready")', timeout=120_000)
        assert {url.removeprefix(address) for url in tab.requested} >= {"model.onnx", "ort-wasm-simd-threaded.wasm"}
        assert all(url.startswith(address) for url in tab.requested)
        tab.requested.clear()
        tab.context.set_offline(True)
        yield tab


def choose(tab, image: nib.Nifti1Image, path: Path) -> str:
    """Give the page a file; what it answers."""
    nib.save(image, path)
    tab.set_input_files("#file", path)
    tab.wait_for_selector(f'#status:has-text("{path.name} fits"), #error:not([hidden])')
    return tab.inner_text("#status") or tab.inner_text("#error")


def test_the_page_equals_torch_and_asks_for_nothing(opened, model, t1, tmp_path):
    answer = choose(opened, model.grid.image(t1), tmp_path / "sub-07_ses-1_T1w.nii.gz")
    assert answer == "sub-07_ses-1_T1w.nii.gz fits the model."
    for age, sex in [(74.5, "F"), (None, None)]:
        opened.fill("#age", "" if age is None else str(age))
        opened.select_option("#sex", sex or "")
        opened.click("#run")
        opened.wait_for_selector('#status:has-text("Done."), #error:not([hidden])', timeout=120_000)
        print(opened.inner_text("#made"))
        for tracer, suvr in expected(model, t1, age, sex).items():
            label = model.card.labels[tracer]
            with opened.expect_download() as got:
                opened.click(f"#{tracer}-nifti")
            name = f"sub-07_ses-1_trc-{label}_space-MNI152NLin2009aSym_desc-synth_pet.nii.gz"
            assert got.value.suggested_filename == name
            got.value.save_as(tmp_path / name)
            image = nib.load(tmp_path / name)
            np.testing.assert_allclose(image.get_fdata(), suvr, rtol=0, atol=1e-4)
            np.testing.assert_allclose(image.affine, model.grid.affine)
            assert image.header["descrip"].item().decode() == model.card.notice
            with opened.expect_download() as got:
                opened.click(f"#{tracer}-json")
            sidecar = json.loads(got.value.path().read_text(encoding="utf-8"))
            assert sidecar["prompt"] == {"age": age, "sex": sex}
            assert (sidecar["notice"], sidecar["Units"], sidecar["steps"]) == (model.card.notice, "SUVR", 1)
            picture = np.frombuffer(opened.locator(f"#{tracer}").screenshot(), np.uint8)
            assert len(picture) > 5000 or opened.is_visible("#no-pictures")
    assert "phantom-trained" in opened.inner_text("#notice")
    assert (opened.requested, opened.errors) == ([], [])
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")
    assert axe.Axe().run(opened).response["violations"] == []
    opened.set_viewport_size({"width": 400, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") == 400


def test_other_volumes_are_refused_with_the_reason(opened, model, t1, tmp_path):
    grid, affine = model.grid, model.grid.affine
    las = nib.Nifti1Image(t1[::-1], affine @ np.diag([-1, 1, 1, 1]))
    noise = np.float32(np.random.default_rng(1).random(t1.shape) * mni_map("brain", grid))
    cases = {
        "small": (nib.Nifti1Image(t1[:-1], affine), "15 × 16 × 16 voxels; the model's grid has 16 × 16 × 16"),
        "frames": (nib.Nifti1Image(np.stack([t1, t1], -1), affine), "16 × 16 × 16 × 2 voxels"),
        "las": (las, "another orientation, voxel size or origin"),
        "raw": (nib.Nifti1Image(1000 * t1, affine), "expected [0, 1]"),
        "nan": (nib.Nifti1Image(np.where(t1 > 0.5, np.nan, t1), affine), "voxels are not finite"),
        "head": (nib.Nifti1Image(np.maximum(t1, np.float32(0.1)), affine), "voxels outside the brain are not 0"),
        "noise": (nib.Nifti1Image(noise, affine), "with the MNI152 T1 in the brain, expected 0.3 or more"),
        "turned": (nib.Nifti1Image(t1[:, :, ::-1], affine), "the MRI is moved or turned"),
    }
    for name, (image, reason) in cases.items():
        assert reason in choose(opened, image, tmp_path / f"{name}.nii"), name
        assert opened.is_disabled("#run")
    (tmp_path / "text.nii.gz").write_text("no image")
    opened.set_input_files("#file", tmp_path / "text.nii.gz")
    opened.wait_for_selector('#error:has-text("text.nii.gz: cannot be read as NIfTI")')
    scaled = nib.Nifti1Image(t1, affine)
    scaled.header.set_data_dtype(np.int16)  # scaled integers hold the same intensities
    assert choose(opened, scaled, tmp_path / "integers.nii.gz").endswith("fits the model.")
    assert opened.is_enabled("#run")
    assert opened.requested == []
