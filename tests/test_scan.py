"""One MRI to both PETs: native voxels, left and right, bytes, tables, errors."""

from __future__ import annotations

import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor, wait

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from bids_dataset import check_dataset
from conftest import digests
from native_scans import rotation, save, storage
from nibabel.affines import apply_affine
from scipy import ndimage
from tiny_methods import SHAPE, Sessions, build, make_config, save_profile_model

from resdm.checkpoint import CheckpointError
from resdm.io import sha256, write_json
from resdm_suite.anatomy import CENTRE_MM, Grid
from resdm_suite.apps import cli
from resdm_suite.apps import single_scan as scans
from resdm_suite.apps.model_folder import PROVENANCE, load_card
from resdm_suite.apps.prediction import Model, SynthesisError, mean_and_std
from resdm_suite.apps.single_scan import ScanError, synthesise_scan, synthesise_scans, to_native
from resdm_suite.cohorts.tables import ManifestError
from resdm_suite.evaluation.suvr import regional_means, sidecar_range, to_suvr
from resdm_suite.paths import CALIBRATION, SPACE, sidecar_path
from resdm_suite.preprocessing import input_check

GRID = Grid((48, 56, 48), 4.0)
MARKER_MM = np.array([-44.0, -30.0, 20.0])
"""In the left hemisphere."""


def marker(grid: Grid) -> np.ndarray:
    """A ball of 12 mm in the left hemisphere."""
    distance = np.linalg.norm(grid.mm() - MARKER_MM[:, None, None, None], axis=0)
    return (distance < 12).astype(np.float32)


def folder(tmp_path, kind="other", **changes):
    config = make_config(tmp_path, kind=kind)
    method = build(config, "Plain")
    torch.nn.init.constant_(method.prompt_weights, 0.5)  # the prompt matters
    return save_profile_model(tmp_path / f"model-{kind}", method, config, "Plain", **changes)


@pytest.fixture
def model(tmp_path):
    """A model of people."""
    return folder(tmp_path)


@pytest.fixture
def t1w(tmp_path):
    """A file in an odd storage; what registration makes of it is not tested here."""
    affine = storage("LPI", (4, 4, 5), (20, 22, 18), np.array(CENTRE_MM), (5, -4, 7))
    return save(tmp_path / "sub-07_ses-1_T1w.nii.gz", np.ones((20, 22, 18), np.float32), affine, codes=(2, 1))


MNI_TO_T1 = 1.05 * rotation((9, -7, 11))
MNI_TO_T1[:, 3] = 6, -4, 3, 1


@pytest.fixture
def registered(monkeypatch):
    """Registration returns `MNI_TO_T1`."""
    seen = []

    def preprocess_mri(path, config):
        seen.append(path)
        return Sessions()[0][0][0].numpy(), {"transform": MNI_TO_T1.tolist(), "t1_correlation": 0.9}

    monkeypatch.setattr(scans, "preprocess_mri", preprocess_mri)
    return seen


@pytest.fixture
def undrawn(monkeypatch):
    """The picture takes most of the time, and has separate tests."""

    def save_figure(figure, stem, provenance):
        stem.with_name(f"{stem.name}.png").write_bytes(b"PNG")
        return [stem.with_name(f"{stem.name}.png")]

    monkeypatch.setattr(scans, "scan_montage", lambda *args, **options: None)
    monkeypatch.setattr(scans, "save_figure", save_figure)


# ── left and right ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPI", "PIR"])
@pytest.mark.parametrize("oblique", [False, True])
def test_a_marker_in_the_left_hemisphere_is_on_the_left_of_the_mri(tmp_path, code, oblique):
    mni_to_t1 = MNI_TO_T1 if oblique else np.eye(4)
    middle = apply_affine(mni_to_t1, np.array(CENTRE_MM))
    affine = storage(code, (2.5, 2.5, 3), (90, 96, 80), middle, (6, -8, 4) if oblique else (0, 0, 0))
    path = save(tmp_path / "x_T1w.nii.gz", np.ones((90, 96, 80), np.float32), affine)
    image = to_native(marker(GRID), GRID, mni_to_t1, path)
    assert image.shape == (90, 96, 80)
    np.testing.assert_array_equal(image.affine, nib.load(path).affine)
    found = np.array(ndimage.center_of_mass(image.get_fdata()))
    np.testing.assert_allclose(apply_affine(affine, found), apply_affine(mni_to_t1, MARKER_MM), atol=0.5)
    # And without any affine: by the letters of the storage, on which side of the middle voxel does it lie?
    axis = next(i for i, letter in enumerate(code) if letter in "RL")
    side = found[axis] - apply_affine(np.linalg.inv(affine), middle)[axis]
    assert side < -10 if code[axis] == "R" else side > 10


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (0, 1), (1, 0), (4, 4)])
def test_only_forms_and_their_codes_are_copied(tmp_path, codes):
    affine = storage("LAS", (1, 1.2, 2), (20, 22, 18), np.zeros(3), (5, -4, 7))
    path = save(tmp_path / "x_T1w.nii.gz", np.ones((20, 22, 18), np.int16), affine, codes=codes)
    image = nib.load(path)
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, path)
    nib.save(to_native(marker(GRID), GRID, np.eye(4), path), tmp_path / "out.nii.gz")
    one, other = nib.load(path).header, nib.load(tmp_path / "out.nii.gz").header
    for field in ("dim", "pixdim", "sform_code", "qform_code", "srow_x", "srow_z", "quatern_c", "qoffset_y"):
        np.testing.assert_array_equal(one[field], other[field])
    assert (int(other["sform_code"]), int(other["qform_code"])) == codes
    assert other.get_data_dtype() == np.float32
    assert b"Jane" not in (tmp_path / "out.nii.gz").read_bytes()
    assert not other.extensions
    assert bytes(other["descrip"]).rstrip(b"\0") == b""


# ── one scan ──────────────────────────────────────────────────────────────────────────────────────


def read_sidecar(path):
    return json.loads(sidecar_path(path).read_text())


def test_the_mean_over_samples_in_both_spaces(tmp_path, model, t1w, registered):
    files = synthesise_scan(t1w, model, tmp_path / "out", age=74, sex="F", samples=3, seed=5)
    loaded, mri = Model.load(model), Sessions()[0][0][0].numpy()
    draws = list(loaded.draws(mri, 74, "F", seed=5, samples=3))
    np.testing.assert_array_equal(draws[0], loaded.synthesise(mri, 74, "F", seed=5))
    assert np.abs(draws[1] - draws[0]).max() > 0
    for channel, tracer in enumerate(("amyloid", "tau")):
        mean = nib.load(files[tracer]).get_fdata()
        np.testing.assert_allclose(mean, 3 * np.mean([d[channel] for d in draws], axis=0), atol=3e-6)  # SUVR of 0 to 3
        native = nib.load(files[f"{tracer}_native"])
        assert files[f"{tracer}_native"].name.replace("T1w", SPACE) == files[tracer].name
        centre = tuple(np.round(apply_affine(np.linalg.inv(native.affine), CENTRE_MM)).astype(int))
        mni = apply_affine(np.linalg.inv(MNI_TO_T1), apply_affine(native.affine, centre))
        place = apply_affine(np.linalg.inv(loaded.grid.affine), mni)
        there = ndimage.map_coordinates(mean, place[:, None], order=1)[0]
        assert native.get_fdata()[centre] == pytest.approx(there, rel=1e-4)
    sidecar = read_sidecar(files["tau_native"])
    assert sidecar.items() >= {
        "SpatialReference": "bids:raw:sub-07_ses-1_T1w.nii.gz", "statistic": "mean over samples", "seed": 5,
        "samples": 3, "prompt": {"age": 74, "sex": "F"},
        "notice": "synthetic, not for clinical use",
    }.items()  # fmt: skip
    assert sidecar["source"]["sha256"] == sha256(t1w)
    assert sidecar["model"]["sha256"] == sha256(model / "model.safetensors")
    assert sidecar["source"]["versions"]["resdm"]
    images = {name: path for name, path in files.items() if path.name.endswith(".nii.gz")}
    expected = dict.fromkeys(["amyloid", "tau", "amyloid_native", "tau_native"], "SUVR")
    expected["mri"] = "1 (T1 scaled to [0, 1])"
    assert {name: read_sidecar(path)["Units"] for name, path in images.items()} == expected
    with pytest.raises(ValueError, match=r"intensity is \{'kind': 'suvr'\}"):  # it is not to be scaled a second time
        sidecar_range(files["tau"])
    table = pd.read_csv(files["suvr"])
    regional = [regional_means(to_suvr(d[1], (0.0, 3.0)), loaded.grid, "tau")["thalamus"] for d in draws]
    row = table.query("tracer == 'tau' and region == 'thalamus'").iloc[0]
    assert row["mean"] == pytest.approx(np.mean(regional), rel=1e-5)
    assert row["samples"] == 3
    # no spread over samples: it was not shown to be valid for a person; and without a calibration no interval
    columns = ["tracer", "label", "region", "unit", "mean", "low", "high", "status", "interval", "samples", "notice"]
    assert list(table) == columns
    assert table[["low", "high", "status"]].isna().all(axis=None)
    assert set(table["interval"]) == {"none: no calibration is stored with the model (resdm sample)"}
    assert not [path.name for path in (tmp_path / "out").rglob("*") if "std" in path.name]
    assert files["picture"].read_bytes()[:4] == b"\x89PNG"


def test_the_same_seed_gives_the_same_bytes(tmp_path, t1w, registered):
    model = folder(tmp_path, kind="phantom")
    options = {"age": 74, "sex": "F", "samples": 2, "allow_phantom_model": True}
    one = synthesise_scan(t1w, model, tmp_path / "a", **options, seed=1)
    torch.manual_seed(9)
    synthesise_scan(t1w, model, tmp_path / "b", **options, seed=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 5 * 2 + 1 + 3 + 1 + 4 + 2  # images, SUVRs, picture, record, data set, locks
    synthesise_scan(t1w, model, tmp_path / "c", **options, seed=2)
    assert sha256(one["tau"]) != sha256(tmp_path / "c" / one["tau"].relative_to(tmp_path / "a"))
    for path in (tmp_path / "a").rglob("*.*"):  # every file names its origin
        if path.suffix in (".json", ".csv") and "preproc_T1w" not in path.name and path.name != "pet.json":
            assert "made by a phantom-trained model" in path.read_text(), path.name
        if path.name.endswith("_pet.json"):
            assert json.loads(path.read_text())["cohort_notice"].startswith("phantom data: not a reproduction")
        if path.suffix == ".gz" and "_pet" in path.name:
            assert b"made by a phantom-trained model" in bytes(nib.load(path).header["descrip"])


def test_outputs_are_valid_bids(tmp_path, model, t1w, registered, undrawn):
    """Of a table and of single MRIs from two folders, with sessions and runs and without, in one folder."""
    out, other = tmp_path / "out", tmp_path / "b" / "my scan.nii.gz"
    other.parent.mkdir()
    other.write_bytes(t1w.read_bytes())
    run = t1w.rename(tmp_path / "sub-07_ses-1_acq-mprage_run-2_T1w.nii.gz")
    for path in (run, other):
        picture = synthesise_scan(path, model, out, age=74, sex="F", samples=1)["picture"]
        for suffix in (".svg", ".json"):  # as a figure has them
            picture.with_suffix(suffix).write_text("{}")
    synthesise_scans(write_table(tmp_path, f"sub-1,,{run.name},70,F,", "sub-2,ses-1,b/my scan.nii.gz,,,"), model, out)
    assert len([*out.rglob("*_pet.nii.gz")]) == 4 * 4
    check_dataset(out)


def test_intensities_without_a_scale_have_no_suvr(tmp_path, t1w, registered, monkeypatch):
    drawn = []
    monkeypatch.setattr(scans, "save_figure", lambda shown, stem, _: drawn.append(shown) or [stem.with_suffix(".png")])
    config = make_config(tmp_path)
    config = dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, intensity="minmax"))
    model = save_profile_model(tmp_path / "model", build(config, "Plain"), config, "Plain")
    files = synthesise_scan(t1w, model, tmp_path / "out", samples=1)
    assert "suvr" not in files
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert labels.count("PET in [0, 1]") == 2
    assert "SUVR" not in labels
    for name in ("tau", "tau_native"):
        assert nib.load(files[name]).get_fdata().max() <= 1
        assert read_sidecar(files[name])["Units"] == "1 (each scan scaled to [0, 1]; no SUVR)"


def test_two_mris_of_one_name_do_not_share_a_folder(tmp_path, model, t1w, registered, undrawn):
    """One MRI at a time and by a table: the second is refused, and the first one's files stay."""
    out, one, other = tmp_path / "out", tmp_path / "T1.nii.gz", tmp_path / "b" / "T1.nii.gz"
    t1w.rename(one)
    save(other, np.zeros((9, 9, 9), np.float32), np.eye(4))
    synthesise_scan(one, model, out, samples=1)
    synthesise_scans(write_table(tmp_path, "sub-1,,T1.nii.gz,70,F,"), model, out, samples=1)
    before = digests(out)
    with pytest.raises(ScanError, match=r"b/T1\.nii\.gz: .*out holds the PETs of another MRI under the name sub-T1 "):
        synthesise_scan(other, model, out, samples=1)
    row = synthesise_scans(write_table(tmp_path, "sub-1,,b/T1.nii.gz,70,F,"), model, out, samples=1).iloc[0]
    assert row["status"] == "failed"
    assert "holds the PETs of another MRI" in row["message"]
    assert digests(out) == before
    synthesise_scan(one, model, out, age=80, samples=1)  # the same MRI again, with another prompt
    assert digests(out) != before


def test_mean_and_std_by_recurrence():
    draws = np.random.default_rng(0).normal(100, 0.01, (7, 2, 3)).astype(np.float32)
    mean, std = mean_and_std(iter(draws))
    np.testing.assert_allclose(mean, draws.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, draws.astype(np.float64).std(axis=0, ddof=1), rtol=1e-5)
    assert np.isnan(mean_and_std(iter(draws[:1]))[1]).all()
    with pytest.raises(ValueError, match="no draw"):
        mean_and_std(iter([]))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def test_folders_without_a_model_are_refused(tmp_path, t1w, registered):
    other = tmp_path / "other"
    other.mkdir()
    (other / "pytorch_model.bin").write_bytes(b"x")
    for model, error, message in (
        (tmp_path / "nowhere", CheckpointError, "nowhere: no such model folder"),
        (other, CheckpointError, r"other: no model\.safetensors there"),
        (folder(tmp_path, kind="phantom"), SynthesisError, "--allow-phantom-model"),
    ):
        with pytest.raises(error, match=message):
            synthesise_scan(t1w, model, tmp_path / "out")
    assert registered == []


@pytest.mark.parametrize(("prompt", "message"), [
    ({"age": "74"}, "prompt: age '74' is text; expected a number of years"),
    ({"age": float("nan")}, "age nan is outside"),
    ({"sex": ("F", "M")}, r"unknown sex \('F', 'M'\)"),
    ({"sex": "unknown"}, "unknown sex 'unknown'; expected one of F, M, or none"),
    ({"samples": 0}, "samples: 0; expected at least 1"),
    ({"seed": -1}, "seed: -1; expected 0 or more"),
    ({"seed": 2**63}, "seed: 9223372036854775808; expected 0 or more, below"),
])  # fmt: skip
def test_impossible_prompts_are_refused(tmp_path, model, t1w, registered, prompt, message):
    with pytest.raises(ValueError, match=message):
        synthesise_scan(t1w, model, tmp_path / "out", **prompt)
    assert registered == []


# ── a T1 that is unlike the training people's ─────────────────────────────────────────────────────


def plant_check(model, brightness):
    """An input check that expects fluid of this brightness, ±0.01."""
    grid = Model.load(model).grid
    voxels, blocks = (int(mask.sum()) for mask in input_check._brain(grid))
    tissue, mean, axes = torch.arange(voxels).remainder(3).to(torch.uint8), torch.zeros(blocks), torch.zeros(1, blocks)
    training = {"brightness of fluid": [brightness, [0.01, 0.01], brightness - 0.02, brightness + 0.02]}
    arrays = tissue, torch.zeros(101), mean, axes, torch.ones(1)
    input_check.InputCheck(grid, *arrays, training, threshold=4.0, held_out=30).save(model)


@pytest.mark.parametrize(("kind", "away", "refused", "passed"), [
    ("other", 0.01, False, True), ("other", 0.06, True, False), ("phantom", 0.06, False, False),
    ("phantom", 0.12, True, False),
])  # fmt: skip
def test_unlike_the_training_people(tmp_path, t1w, registered, undrawn, capsys, kind, away, refused, passed):
    """Refused with the reason; a model of phantoms takes twice the distance, with a warning; --force takes all."""
    model, mri = folder(tmp_path, kind=kind), Sessions()[0][0][0].numpy()
    fluid = float(mri[input_check._brain(Grid(SHAPE, 12.0))[0]][::3].mean())
    plant_check(model, fluid + away)
    call = ["synthesise", str(t1w), "--model", str(model), "--out", str(tmp_path / "out"), "--allow-phantom-model"]
    assert cli.main(call) == (2 if refused else 0)
    text = f"this T1 is unlike the training people's: brightness of fluid {fluid:.3g} (training people "
    printed = capsys.readouterr()
    assert (f"resdm synthesise: {t1w}: {text}" in printed.err) == refused
    assert (text in printed.out) == (not refused and not passed)
    assert list(tmp_path.glob("out/**/*_pet.nii.gz")) == [] or not refused
    assert cli.main([*call, "--force"]) == 0
    for path in tmp_path.glob("out/sub-*/**/*_*.json"):
        stored = json.loads(path.read_text())
        found = stored.get("input_check") or stored["source"]["input_check"]
        assert found["passed"] is passed
        assert found["text"].startswith(text) == (not passed)


def test_forced_results_are_not_kept_without_force(tmp_path, model, t1w, registered, undrawn):
    plant_check(model, 0.9)
    table = write_table(tmp_path, f"sub-1,,{t1w.name},70,F,")
    runs = [synthesise_scans(table, model, tmp_path / "out", samples=1, force=force) for force in (True, True, False)]
    assert [frame["status"][0] for frame in runs] == ["done", "kept", "failed"]
    assert all("this T1 is unlike the training people's" in frame["message"][0] for frame in runs)


def test_a_model_without_input_check_says_so(tmp_path, model, t1w, registered, undrawn, capsys):
    call = ["synthesise", str(t1w), "--model", str(model), "--out", str(tmp_path / "out")]
    assert cli.main(call) == 0
    assert f"not checked whether this T1 is like the training people's: {model} has no" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/sub-07/ses-1/sub-07_ses-1_desc-synth_record.json").read_text())
    assert record["input_check"]["passed"] is None


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────


def test_calibrated_intervals_status_and_centiloid(tmp_path, model, t1w, registered, undrawn):
    """Undetermined where the interval spans the cut-off; another calibration makes the files again."""
    out = tmp_path / "out"
    plain = pd.read_csv(synthesise_scan(t1w, model, out, samples=1)["suvr"]).set_index(["tracer", "region"])["mean"]
    mean, table = plain["amyloid", "summary"], write_table(tmp_path, f"sub-1,,{t1w.name},70,F,")
    cutoff = load_card(model).config.cohort.amyloid_cutoff["18FAV45"]
    digest = sha256(model / "model.safetensors")
    for half, expected in ((abs(mean - cutoff) / 2, "positive" if mean > cutoff else "negative"),
                           (2 * abs(mean - cutoff), "undetermined")):  # fmt: skip
        tracers = {"amyloid": {"people": 30, "half_width": {"summary": half, "frontal": 0.3}}}
        write_json(model / CALIBRATION, {"model": digest, "tracers": tracers})
        files = synthesise_scan(t1w, model, out, samples=1)
        rows = pd.read_csv(files["suvr"], keep_default_na=False).set_index(["tracer", "region"])
        row, scale = rows.loc["amyloid", "summary"], rows.loc["amyloid", "uncalibrated Centiloid estimate"]
        assert row["status"] == expected
        assert row["interval"] == "90 %, by the errors of 30 validation people"
        np.testing.assert_allclose(row[["low", "high"]].astype(float), [mean - half, mean + half], rtol=1e-5)
        assert scale["unit"] == "CL"
        ends = scale[["mean", "low", "high"]].astype(float)
        np.testing.assert_allclose(ends, [175.4 * s - 182.3 for s in (mean, mean - half, mean + half)], rtol=1e-4)
        assert rows.loc[("amyloid", "precuneus"), "low"] == ""  # no calibration of this region, and none of this tracer
        assert (rows.loc["tau", "status"] == "").all()
        record = json.loads(files["record"].read_text())
        assert [one["status"] for one in record["regional"] if one["region"] == "summary"] == [expected, ""]
        statuses = [synthesise_scans(table, model, out, samples=1)["status"][0] for _ in range(2)]
        assert statuses == ["done", "kept"]


def test_a_pet_is_of_the_tracers_of_the_training(tmp_path, model, t1w, registered, undrawn):
    """Names, cut-off and Centiloid are of the label with the most training scans; no PET of a tracer without scans."""
    scans = {"amyloid": {"11CPIB": 7, "18FAV45": 2}, "tau": {}}
    write_json(model / PROVENANCE, {"scans": scans})
    write_json(model / CALIBRATION, {
        "model": sha256(model / "model.safetensors"),
        "tracers": {"amyloid": {"people": 30, "half_width": {"summary": 9.0}}},
    })  # fmt: skip
    files = synthesise_scan(t1w, model, tmp_path / "out", samples=1)
    assert {"amyloid", "amyloid_native"} == {name for name in files if "amyloid" in name or "tau" in name}
    assert [path.name.split("_")[2] for path in (tmp_path / "out").rglob("*_pet.nii.gz")] == ["trc-11CPIB"] * 2
    sidecar = read_sidecar(files["amyloid_native"])
    assert (sidecar["TracerName"], sidecar["training_scans"]) == ("11CPIB", scans["amyloid"])
    rows = pd.read_csv(files["suvr"], keep_default_na=False).query("region != 'frontal'").set_index("region")
    assert set(rows["label"]) == {"11CPIB"}
    assert rows.loc["summary", "status"] == ""  # the profile has no cut-off for this tracer
    suvr, scale = rows.loc[["summary", "uncalibrated Centiloid estimate"], "mean"].astype(float)
    assert scale == pytest.approx(100 * (suvr - 1.009) / 1.067, rel=1e-4)  # Klunk et al. 2015


# ── many scans ────────────────────────────────────────────────────────────────────────────────────


def write_table(tmp_path, *lines):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["person,session,t1w,age,sex,diagnosis", *lines]) + "\n")
    return path


def test_a_failed_row_does_not_stop_the_others(tmp_path, model, t1w, registered, undrawn):
    out = tmp_path / "out"
    (tmp_path / "broken_T1w.nii.gz").write_bytes(b"no image")
    lines = [
        f"sub-1,ses-1,{t1w.name},74,F,CN", f"sub-1,ses-2,{t1w},,,CN", "sub-2,,gone.nii.gz,70,M,AD",
        f"sub-3,,{t1w.name},old,M,AD", f"sub-4,,{t1w.name},70,W,AD", "sub-5,,broken_T1w.nii.gz,70,M,AD",
        f"sub-6,,{t1w.name},80,M,",
    ]  # fmt: skip

    def states(*lines, samples=2):
        return synthesise_scans(write_table(tmp_path, *lines), model, out, samples=samples)["status"].tolist()

    path = write_table(tmp_path, *lines)
    frame = synthesise_scans(path, model, out, samples=2)
    assert frame["status"].tolist() == ["done", "done", *["failed"] * 4, "done"]
    messages = frame["message"].tolist()
    assert messages[2].startswith(f"FileNotFoundError: {path}, line 4: ")
    assert f"{path}, line 5: age 'old' is no number" in messages[3]
    assert f"{path}, line 6: unknown sex 'W'" in messages[4]
    assert (out / "sub-1/ses-2/pet/sub-1_ses-2_trc-18FAV45_space-T1w_desc-synth_pet.nii.gz").is_file()
    sidecar = json.loads((out / "sub-1/ses-2/sub-1_ses-2_desc-synth_record.json").read_text())
    assert sidecar["prompt"] == {"age": None, "sex": None}
    before = digests(out)
    registered.clear()
    assert states(*lines) == ["kept", "kept", *["failed"] * 4, "kept"]
    assert digests(out) == before
    assert len(registered) == 1  # the broken file, which is no image
    next((out / "sub-6/pet").glob("*18FAV1451_space-T1w_desc-synth_pet.nii.gz")).unlink()
    lines = lines[0].replace("74", "75"), lines[1], lines[6]
    assert states(*lines) == ["done", "kept", "done"]  # another prompt; a lost file
    assert states(*lines, samples=3) == ["done"] * 3


@pytest.mark.parametrize(("text", "message"), [
    ("who,t1w\nsub-1,x\n", "no column person; found who, t1w, expected person, t1w"),
    ("", r"table\.csv: empty"),
    ("person,t1w\nsub-1,x,y,z\nsub-2,x\n", "row 2: found 4 cells, expected 2 as in the header"),
    ("person,t1w\nsub-1,sub-é\n".encode("latin-1"), "row 2: not UTF-8"),
    ("person;t1w\nsub-1;x\n", "columns are separated by semicolons"),
    ("person,person,t1w\nsub-1,sub-2,x\n", "two columns person; found person, person, t1w"),
    ("person,t1w\n", "no row; expected one per scan"),
    ("person,t1w\n\n../x,y\n", r"line 3: person '\.\./x'"),
    ("person,session,t1w\nsub-1,ses-1,x\nsub-1,ses-1,y\n", "line 3: sub-1 ses-1 is also on line 2"),
])  # fmt: skip
def test_unreadable_tables_are_refused(tmp_path, model, text, message):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ScanError, ManifestError), match=message):
        synthesise_scans(path, model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="gone"):
        synthesise_scans(tmp_path / "gone.csv", model, tmp_path / "out")


# ── two processes in one folder ───────────────────────────────────────────────────────────────────


def meanwhile(monkeypatch, name, second):
    """When the first call of a function of `scans` runs, ``second`` starts beside it; returns its result later."""
    pool, step, started = ThreadPoolExecutor(1), getattr(scans, name), []

    def interrupted(*arguments, **options):
        if not started:
            started.append(pool.submit(second))
            wait(started, timeout=2)  # it ends now, or it waits for a lock
        return step(*arguments, **options)

    monkeypatch.setattr(scans, name, interrupted)
    return lambda: started[0].result(timeout=60)


def test_two_at_once_describe_both_folders_of_mris(tmp_path, monkeypatch):
    out = tmp_path / "out"
    other = meanwhile(monkeypatch, "write_description", lambda: scans._describe(out, tmp_path / "b", ""))
    assert [scans._describe(out, tmp_path / "a", ""), other()] == ["raw", "raw2"]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../a", "raw2": "../b"}


def test_two_mris_of_one_name_at_once_do_not_share_a_folder(
    tmp_path, model, t1w, registered, undrawn, monkeypatch, capsys
):
    out, other = tmp_path / "out", tmp_path / "b" / t1w.name
    save(other, np.zeros((9, 9, 9), np.float32), np.eye(4))
    second = meanwhile(monkeypatch, "synthesise_mri", lambda: synthesise_scan(other, model, out, samples=1))
    files = synthesise_scan(t1w, model, out, samples=1)
    with pytest.raises(ScanError, match="holds the PETs of another MRI under the name sub-07_ses-1"):
        second()
    assert "sub-07_ses-1: another process is at work on it in" in capsys.readouterr().err
    assert {read_sidecar(files[name])["source"]["sha256"] for name in ("tau", "tau_native")} == {sha256(t1w)}


def test_a_table_given_twice_at_once_is_synthesised_once(tmp_path, model, t1w, registered, undrawn, monkeypatch):
    table = write_table(tmp_path, f"sub-1,,{t1w.name},70,F,")
    run = functools.partial(synthesise_scans, table, model, tmp_path / "out", samples=1)
    second = meanwhile(monkeypatch, "synthesise_mri", run)
    assert [frame["status"].tolist() for frame in (run(), second())] == [["done"], ["kept"]]
