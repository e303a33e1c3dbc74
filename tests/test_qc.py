"""QC: measures against the truth, what a flip and a wrong transform do to them, montages, the page, done once."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import times
from nibabel.affines import apply_affine

from resdm.io import write_csv, write_json
from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, brain_points, mni_map
from resdm_suite.cohorts.manifest import read_manifest, write_manifest
from resdm_suite.cohorts.phantom import write_phantoms
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.cohorts.splits import split_people
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.qc import session_quality, sessions
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig
from resdm_suite.records import NAME
from resdm_suite.reporting import qc as qc_page
from resdm_suite.reporting.qc import montage, qc_distributions, write_qc
from resdm_suite.reporting.slices import FIELD_MM

GRID = Grid((28, 32, 28), 6.0)
PHANTOMS = PhantomConfig(
    people=5, anatomy_mm=4.0, t1_voxel_mm=(3.4, 3.4, 3.6), pet_voxel_mm=(4.0, 4.0, 4.2), single_pet=0.3
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Preprocessed phantoms with quality control: configuration and table."""
    settings = PreprocessConfig(grid=GridConfig(GRID.shape, GRID.voxel_mm), registration_mm=4.0, n4=False)
    root = tmp_path_factory.mktemp("qc")
    config = Config(profile="tiny", cohort=CohortConfig(phantom=PHANTOMS), preprocess=settings, root=root)
    found = build_manifest(write_phantoms(config, progress=False), config)
    write_manifest(split_people(found.manifest, config.cohort.split, 0), config.manifest)
    preprocess(config, progress=False)
    return config, write_qc(config, progress=False)


@pytest.fixture
def copy(cohort, tmp_path):
    """A copy of the cohort to modify; file times are kept."""
    config = cohort[0]
    shutil.copytree(config.root, tmp_path, dirs_exist_ok=True)
    config = dataclasses.replace(config, root=tmp_path)
    for folder in (config.volumes, config.source_root):  # volumes and scans are changed by hand
        (folder / NAME).unlink()
    return config


def session(config, number=0):
    """A session with both PETs."""
    return [one for one in sessions(config) if len(one.record["outputs"]) == 3][number]


def edit(config, one, what, change):
    """Another image in place of a volume of a session."""
    path = config.volumes / one.record["outputs"][what]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(change(image.get_fdata(dtype=np.float32))), image.affine), path)


def flip(config, one, what):
    edit(config, one, what, lambda data: data[::-1])


def move(config, one, what, key, axis, mm):
    """Another transform in the sidecar of a volume."""
    path = sidecar_path(config.volumes / one.record["outputs"][what])
    sidecar = json.loads(path.read_text())
    sidecar[key][axis][3] += mm
    write_json(path, sidecar)


def drawn(config):
    return times(config.work / "qc", config.figures)


# ── measures ──────────────────────────────────────────────────────────────────────────────────────


def test_the_table_holds_the_error_against_the_truth(cohort):
    """Within 3 mm (T1 → MNI), 2 mm (PET → T1) and 2 % (reference region) in every phantom, and counted right."""
    config, table = cohort
    points = brain_points()
    assert table["t1w_error_mm"].notna().all()
    assert table["t1w_error_mm"].max() < 3
    for tracer in TRACERS:
        assert table[f"{tracer}_error_mm"].max() < 2
        assert (table[f"{tracer}_reference_suvr"].dropna() - 1).abs().max() < 0.02
        assert table[f"{tracer}_error_mm"].isna().equals(table[f"{tracer}_similarity"].isna())
    for row, one in zip(table.to_dict("records"), sessions(config), strict=True):
        truth = json.loads((config.work / "truth" / f"{row['person']}.json").read_text())
        scans = next(v["scans"] for v in truth["sessions"] if v["session"] == row["session"])
        path = sidecar_path(config.volumes / one.record["outputs"]["t1w"])
        there = apply_affine(json.loads(path.read_text())["transform"], points)
        true = apply_affine(np.linalg.inv(scans["t1w"]["world_to_mni"]), points)
        assert row["t1w_error_mm"] == pytest.approx(np.linalg.norm(there - true, axis=1).mean(), rel=1e-6)
    assert (table["flags"] == "").all()
    assert (table["kept"] == 1).all()
    on_disk = pd.read_csv(config.work / "qc" / "qc.csv")
    assert list(on_disk.columns) == list(table.columns)
    np.testing.assert_allclose(on_disk["t1w_error_mm"], table["t1w_error_mm"], rtol=1e-5)
    assert set(on_disk["axes"].str.split().str.len()) <= {2, 3}


def test_the_planted_scale_is_recovered(cohort):
    """The reference mean over the scan's Bq/mL at SUVR 1: a few percent, by partial volume and deformation."""
    _, table = cohort
    away = np.abs(table[[f"{tracer}_scale" for tracer in TRACERS]].to_numpy() - 1)
    assert np.nanmean(away) < 0.06
    assert np.nanmax(away) < 0.2


@pytest.mark.parametrize(("scan", "key"), [("t1w", "transform"), ("tau", "t1_to_pet")])
def test_a_wrong_transform_is_flagged(copy, scan, key):
    one = session(copy)
    before = session_quality(one)
    move(copy, one, scan, key, 2, 8.0)
    after = session_quality(one)
    assert after[f"{scan}_error_mm"] == pytest.approx(8, abs=before[f"{scan}_error_mm"] + 0.1)
    assert before["flags"] == ""
    assert re.fullmatch(rf"{scan} registration \d\.\d mm off the truth", after["flags"])


def test_a_reference_that_is_not_1_is_flagged(copy):
    one = session(copy)
    edit(copy, one, "amyloid", lambda data: data * 1.05)
    found = session_quality(one)
    assert found["amyloid_reference_suvr"] == pytest.approx(1.05, abs=1e-3)
    assert found["flags"] == "amyloid reference region at SUVR 1.050, not 1"


def test_no_error_without_truth(copy):
    shutil.rmtree(copy.work / "truth")
    found = session_quality(session(copy))
    assert not [name for name in found if name.endswith(("_mm", "_scale")) and name != "form_mm"]


def test_a_flipped_pet_and_a_flipped_t1_are_flagged_in_every_phantom(copy):
    """The T1 alone cannot show a flip: the template is symmetric."""
    template = mni_map("t1", GRID)
    np.testing.assert_allclose(template, template[::-1], atol=1e-5)
    for one in sessions(copy):
        tracers = [tracer for tracer in TRACERS if tracer in one.record["outputs"]]
        straight = session_quality(one)
        flip(copy, one, tracers[0])
        flipped = session_quality(one)
        for tracer in tracers:
            expected = -1 if tracer == tracers[0] else 1
            assert flipped[f"{tracer}_mirror"] == pytest.approx(expected * straight[f"{tracer}_mirror"], abs=1e-3)
            assert straight[f"{tracer}_mirror"] > 0.005
        assert f"{tracers[0]} fits the T1 better mirrored" in flipped["flags"]
        flip(copy, one, tracers[0])
        flip(copy, one, "t1w")
        turned = session_quality(one)
        assert all(turned[f"{tracer}_mirror"] < 0 for tracer in tracers)
        assert turned["t1_torque"] == pytest.approx(-straight["t1_torque"], abs=1e-6)


def test_contradictory_forms_are_flagged(copy):
    one = session(copy)
    image = nib.load(one.row["tau"])
    affine = image.affine.copy()
    affine[1, 3] += 30
    image.set_qform(affine, code=2)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine, image.header), one.row["tau"])
    found = session_quality(one)
    assert found["form_mm"] == pytest.approx(30, abs=0.01)
    assert found["flags"] == "sform and qform 30 mm apart"
    shutil.rmtree(copy.source_root)  # missing scans are no error
    assert session_quality(one)["axes"] == ""


# ── montages ──────────────────────────────────────────────────────────────────────────────────────


def test_left_is_left_in_a_montage():
    """A bright spot in the left hemisphere is left of the middle of coronal and axial slices, at its millimetre."""
    spot = np.array([-34.0, -58.0, -18.0])
    volume = np.exp(-((GRID.mm() - spot[:, None, None, None]) ** 2).sum(0) / (2 * 8.0**2)).astype(np.float32)
    picture = np.asarray(montage({"t1w": volume}, GRID)).astype(int)
    t1 = picture[qc_page.HEAD : qc_page.HEAD + 191]
    grey = (t1[..., 0] == t1[..., 1]) & (t1[..., 0] == t1[..., 2])
    coronal, axial = 191 + qc_page.GAP, 191 + 157 + 2 * qc_page.GAP
    for left, up, field in ((coronal, 2, "z"), (axial, 1, "y")):
        panel = np.where(grey, t1[..., 0], 0)[20:165, left : left + 157]  # without the marks and the name
        row, column = np.unravel_index(panel.argmax(), panel.shape)
        assert column + FIELD_MM["x"][0] == pytest.approx(spot[0], abs=3)
        height = int(np.ptp(FIELD_MM[field])) + 1
        assert FIELD_MM[field][1] - (row + 20 - (191 - height) // 2) == pytest.approx(spot[up], abs=3)


def test_a_montage_has_outlines_where_a_scan_was_acquired():
    brain = mni_map("t1", GRID)
    full = np.asarray(montage({"t1w": brain, "amyloid": brain, "tau": brain}, GRID, "sub-1 ses-1"))
    part = np.asarray(montage({"t1w": brain, "amyloid": brain}, GRID, "sub-1 ses-1"))
    cyan = (full == qc_page.BRAIN_COLOUR).all(-1)
    rows = [slice(qc_page.HEAD + i * 193, qc_page.HEAD + i * 193 + 191) for i in range(3)]
    assert all(cyan[row].sum() > 1000 for row in rows)
    assert full.shape == part.shape
    assert (full[: rows[2].start] == part[: rows[2].start]).all()
    assert not (part[rows[2]] == qc_page.BRAIN_COLOUR).all(-1).any()


# ── the page, done once ───────────────────────────────────────────────────────────────────────────


def test_the_page_shows_all_sessions_flagged_first_and_is_self_contained(copy):
    one = session(copy, -1)
    move(copy, one, "tau", "t1_to_pet", 0, 9)
    shutil.rmtree(copy.work / "qc")
    reason = "sub-x_pet.nii.gz: cannot be read <as> NIfTI"
    write_csv(copy.volumes / "excluded.csv", pd.DataFrame([["sub-x", "ses-1", "train", "unusable", reason]],
              columns=["person", "session", "split", "step", "reason"]))  # fmt: skip
    table = write_qc(copy, progress=False)
    folder = copy.work / "qc"
    text = (folder / "index.html").read_text()
    assert re.findall(r'<article id="([^"]+)"', text)[0] == one.name
    assert text.count("<article") == len(table)
    assert "tau registration 9" in text or "tau registration 8" in text
    assert "1 flagged; 1 could not be used" in text
    assert "&lt;as&gt;" in text
    links = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    assert len(links) == len(table) + 5
    assert {link for link in links if not (folder / link).is_file()} == {"../report/index.html", "#top", "data:,"}
    assert "<script" not in text
    assert 'name="viewport"' in text
    assert copy.notice[1:] in html.unescape(text)
    assert str(copy.root) not in text


def test_second_call_writes_nothing_and_only_changed_sessions_are_repeated(copy):
    before, content = drawn(copy), {path: path.read_bytes() for path in (copy.work / "qc").iterdir()}
    write_qc(copy, progress=False)
    assert drawn(copy) == before
    lost, kept = sorted(path for path in content if path.suffix == ".png" and "sub-" in path.name)[:2]
    lost.unlink()  # as if killed before it was drawn
    write_qc(copy, progress=False)
    assert {path: path.read_bytes() for path in content} == content
    assert drawn(copy)[kept] == before[kept]
    before = drawn(copy)
    frame = read_manifest(copy.manifest)
    gone, changed = frame.iloc[-1], frame.iloc[0]
    image = nib.load(changed["t1w"])
    data = image.get_fdata(dtype=np.float32) * (1 + 0.2 * np.linspace(-1, 1, image.shape[0])[:, None, None])
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine, image.header), changed["t1w"])
    write_manifest(frame.iloc[:-1].assign(split="train"), copy.manifest)
    preprocess(copy, progress=False)
    table = write_qc(copy, progress=False)
    redrawn = {path.stem for path, _ in drawn(copy).items() - before.items() if path.suffix == ".png"}
    assert redrawn == {f"{changed['person']}_{changed['session']}", "distributions", "qc"}
    assert not list((copy.work / "qc").glob(f"{gone['person']}_{gone['session']}.*"))
    assert set(table["split"]) == {"train"}


def test_excluded_sessions_stay_on_the_page(copy):
    index = pd.read_csv(copy.volumes / "index.csv")
    write_csv(copy.volumes / "index.csv", index.iloc[1:])
    table = write_qc(copy, progress=False)
    assert table["kept"].tolist() == [0, *[1] * (len(index) - 1)]
    assert (copy.work / "qc" / "index.html").read_text().count("left out of the cohort</p>") == 1


def test_the_figure_names_nobody_and_omits_unknown_measures(cohort):
    config, table = cohort
    svg = (config.figures / "qc.svg").read_text()
    assert "sub-" not in svg
    assert "sub-" not in (config.figures / "qc.json").read_text()
    assert len(qc_distributions(table).axes) == 9
    unknown = table.drop(columns=[name for name in table if name.endswith("error_mm")])
    assert len(qc_distributions(unknown).axes) == 7
    nobody = unknown.assign(**{name: np.nan for name in table if name.startswith("tau_")})
    assert len(qc_distributions(nobody.iloc[:1]).axes) == 7


def test_missing_volumes_are_named(tmp_path, cohort):
    with pytest.raises(FileNotFoundError, match="run `resdm preprocess` first"):
        write_qc(dataclasses.replace(cohort[0], root=tmp_path), progress=False)
