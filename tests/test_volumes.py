"""Scans → volumes: geometry and SUVR against the phantoms' truth; files, resuming, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import digests, times
from native_scans import make_visit, save
from nibabel.affines import apply_affine
from scipy import ndimage

from resdm.io import write_json
from resdm.settings import TRACERS, ConfigError
from resdm_suite.anatomy import CENTRE_MM, REFERENCE, SUMMARY, Grid, brain_points, mni_map, regions
from resdm_suite.cohorts.manifest import ManifestError, read_manifest, write_manifest
from resdm_suite.cohorts.phantom import write_phantoms
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.cohorts.splits import split_people
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing import volumes
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.preprocessing.measures import LIMITS, blur, measure_flags, shared_information
from resdm_suite.preprocessing.resampling import Scan, displacement, resample, smooth
from resdm_suite.preprocessing.scans import VolumeError, read_scan
from resdm_suite.preprocessing.suvr import pet_on_grid
from resdm_suite.preprocessing.t1 import check_contrast, preprocess_mri, t1_on_grid
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig, check_field
from resdm_suite.records import NAME, RecordError, checked

GRID = Grid((32, 32, 32), 6.0)
PHANTOMS = PhantomConfig(
    people=7, anatomy_mm=4.0, t1_voxel_mm=(3.4, 3.4, 3.6), pet_voxel_mm=(4.0, 4.0, 4.2), single_pet=0.2,
    repeat_visits=0.2, pet_frames=2,
)  # fmt: skip


def make_config(root, **options) -> Config:
    settings = PreprocessConfig(grid=GridConfig(GRID.shape, GRID.voxel_mm), registration_mm=5.0, **options)
    return Config(profile="tiny", cohort=CohortConfig(phantom=PHANTOMS), preprocess=settings, root=root)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Phantoms with two frames a PET, preprocessed: configuration, index, truth by person."""
    config = make_config(tmp_path_factory.mktemp("cohort"))
    root = write_phantoms(config, progress=False)
    write_manifest(split_people(build_manifest(root, config).manifest, config.cohort.split, 0), config.manifest)
    index = preprocess(config, progress=False)
    truth = {}
    for path in (config.work / "truth").glob("sub-*.json"):
        for visit in json.loads(path.read_text())["sessions"]:
            truth[path.stem, visit["session"]] = visit
    return config, index, truth


@pytest.fixture
def copy(cohort, tmp_path):
    """A copy of the cohort to modify; file times are kept."""
    config = cohort[0]
    shutil.copytree(config.work, tmp_path / "work" / "tiny")
    return dataclasses.replace(config, root=tmp_path)


def loaded(path):
    return nib.load(path).get_fdata(dtype=np.float32)


def sidecar(path):
    return json.loads(sidecar_path(path).read_text())


def state(folder):
    return {path.relative_to(folder).as_posix(): time for path, time in times(folder).items()}


# ── against the truth ─────────────────────────────────────────────────────────────────────────────


def test_suvr_is_1_in_the_reference_region(cohort):
    """On an independent grid of 3 mm, nearly."""
    config, index, _ = cohort
    manifest = read_manifest(config.manifest).set_index(["person", "session"])
    fine, ratios = Grid((64, 64, 64), 3.0), []
    for row in index.to_dict("records"):
        for tracer in TRACERS:
            if row[tracer]:
                info = sidecar(config.volumes / row[tracer])
                scan = read_scan(manifest.loc[(row["person"], row["session"]), tracer], frames=True)
                native = resample(scan, fine.affine, fine.shape, np.array(info["transform"])) / info["reference_mean"]
                ratios.append(native[regions(fine)[REFERENCE[tracer]]].mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    assert np.abs(np.array(ratios) - 1).max() < 0.03


def test_measured_suvr_follows_the_planted(cohort):
    """Approximately: regions are those of the template, and an affine cannot undo a deformation."""
    _, index, truth = cohort
    for tracer in TRACERS:
        here = index[index[tracer] != ""]
        keys = zip(here["person"], here["session"], strict=True)
        planted = np.array([truth[key]["summary"][tracer] for key in keys])
        measured = here[f"{tracer}_suvr"].to_numpy()
        assert np.abs(measured - planted).mean() < 0.06
        assert np.abs(measured - planted).max() < 0.2
        assert np.corrcoef(measured, planted)[0, 1] > 0.9


def test_n4_takes_the_bias_out_of_white_matter(cohort):
    """A bias of ±25 % from left to right: white matter is flatter after N4, and both hemispheres are alike."""
    visit = make_visit(3)
    across = np.linspace(-1, 1, visit.t1.data.shape[0])[:, None, None]
    t1 = dataclasses.replace(visit.t1, data=(visit.t1.data * np.exp(0.25 * across)).astype(np.float32))
    white, x = mni_map("wm", GRID) > 0.8, GRID.mm()[0]
    sides = {}
    for n4 in (False, True):
        settings = make_config(None, n4=n4).preprocess
        array = t1_on_grid(t1, settings, "t1.nii.gz")[0]
        left, right = array[white & (x < -20)].mean(), array[white & (x > 20)].mean()
        sides[n4] = abs(left - right) / (left + right)
    assert sides[False] > 0.1
    assert sides[True] < 0.25 * sides[False]


@pytest.fixture(scope="module")
def aligned(cohort, tmp_path_factory):
    """The first session with both PETs, resampled by the truth onto an MNI152 grid of 3.5 mm, and its row."""
    config, _, truth = cohort
    row = next(row for row in read_manifest(config.manifest).to_dict("records") if row["amyloid"] and row["tau"])
    scans, grid = truth[row["person"], row["session"]]["scans"], Grid((57, 67, 58), 3.5)
    folder = tmp_path_factory.mktemp("aligned")
    for what in ("t1w", *TRACERS):
        mni_to_scan = np.linalg.inv(scans[what]["world_to_mni"])
        data = resample(read_scan(row[what], frames=True), grid.affine, grid.shape, mni_to_scan)
        row[what] = str(save(folder / f"{what}.nii.gz", data, grid.affine, codes=(4, 0)))
    return row | {"split": "train", "space": "MNI152"}


def test_scans_in_mni_space_are_resampled_not_registered(cohort, aligned, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("registered")

    config = dataclasses.replace(make_config(tmp_path, n4=False, mask=False), cohort=cohort[0].cohort)
    write_manifest(pd.DataFrame([aligned]), config.manifest)
    with monkeypatch.context() as patch:
        for name in ("register_affine", "register_rigid"):
            patch.setattr(f"resdm_suite.preprocessing.registration.{name}", never)
        index = preprocess(config, progress=False)
        before = state(config.volumes)
        preprocess(config, progress=False)
        assert state(config.volumes) == before
    assert index["t1_correlation"][0] > 0.85
    for what in ("t1w", *TRACERS):
        info = sidecar(config.volumes / index[what][0])
        assert info["registered"] is False
        assert info["transform"] == np.eye(4).tolist()
        here = loaded(config.volumes / index[what][0])
        plain = resample(read_scan(aligned[what]), GRID.affine, GRID.shape)
        scale = info["intensity"]["value"] if what == "t1w" else 3 * info["reference_mean"]
        np.testing.assert_allclose(here, np.clip(plain / scale, 0, 1), atol=1e-5)
    write_manifest(pd.DataFrame([aligned | {"space": ""}]), config.manifest)  # the same files, now to be registered
    preprocess(config, progress=False)
    info = sidecar(config.volumes / index["t1w"][0])
    assert "registered" not in info
    assert displacement(np.array(info["transform"]), np.eye(4), brain_points()).mean() < 3


@pytest.mark.parametrize(("what", "axis", "shift", "message"), [
    ("t1w", 1, 45, "the manifest states .*it does not fit the MNI152 T1 there.*leave the space empty"),
    ("t1w", 1, 900, r"the manifest states .*correlation 0\.00.*leave the space empty"),
    ("tau", 2, 60, r"holds \d+ % of the reference region"),
])  # fmt: skip
def test_scans_outside_the_stated_space_are_named(cohort, aligned, tmp_path, what, axis, shift, message):
    config = dataclasses.replace(make_config(tmp_path, n4=False), cohort=cohort[0].cohort)
    image = nib.load(aligned[what])
    affine = image.affine.copy()
    affine[axis, 3] += shift
    path = save(tmp_path / "moved.nii.gz", image.get_fdata(dtype=np.float32), affine)
    write_manifest(pd.DataFrame([aligned | {what: str(path)}]), config.manifest)
    with pytest.raises(VolumeError, match=rf"moved\.nii\.gz: {message}"):
        preprocess(config, progress=False)


# ── what is written ───────────────────────────────────────────────────────────────────────────────


def test_files_on_disk(cohort):
    """Volumes, their sidecars, the array of all, the index, and the means of the training people."""
    config, index, _ = cohort
    manifest = read_manifest(config.manifest)
    assert index[["person", "session"]].equals(manifest[["person", "session"]])
    assert list(pd.read_csv(config.volumes / "index.csv").columns) == list(index.columns)
    for name in set(index) - {"age", "sex", "diagnosis", "education", "mmse"}:
        with pytest.raises(ConfigError, match=f"'{name}'"):  # of a source, it would be lost
            check_field(name, "prior.fields")
    array = np.load(config.volumes / "cohort.npy", mmap_mode="r")
    assert (array.dtype, array.shape) == (np.float16, (len(index), 3, *GRID.shape))
    brain, trained = mni_map("brain", GRID), {tracer: [] for tracer in TRACERS}
    for number, row in enumerate(index.to_dict("records")):
        folder, name = f"{row['person']}/{row['session']}", f"{row['person']}_{row['session']}"
        for channel, what in enumerate(("t1w", *TRACERS)):
            assert row.get(f"present_{what}", 1) == bool(row[what])
            if not row[what]:
                assert not array[number, channel].any()
                continue
            place = "anat/{}_{}_T1w" if what == "t1w" else f"pet/{{}}_trc-{row[f'{what}_tracer']}_{{}}_pet"
            assert row[what] == f"{folder}/{place}.nii.gz".format(name, "space-MNI152NLin2009aSym_desc-preproc")
            image = nib.load(config.volumes / row[what])
            volume = image.get_fdata(dtype=np.float32)
            np.testing.assert_allclose(image.affine, GRID.affine)
            assert image.get_data_dtype() == np.float32
            assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
            assert (volume.min(), volume[~brain].max()) == (0, 0)
            assert volume.max() <= 1
            np.testing.assert_allclose(array[number, channel], volume, atol=5e-4)
            info = sidecar(config.volumes / row[what])
            assert np.shape(info["transform"]) == (4, 4)
            assert len(info["source"]["sha256"]) == 64
            assert info["SkullStripped"] is True
            assert info["Units"] == ("1 (T1 scaled to [0, 1])" if what == "t1w" else "1 (SUVR = 3 × value)")
            assert info["registration_similarity"] > 0.5
            if what == "t1w":
                assert np.mean(volume[brain] == 1) == pytest.approx(0.005, abs=0.001)
                assert "frames" not in info
                continue
            if row["split"] == "train":
                trained[what].append(volume)
            assert info["intensity"] == {"kind": "fixed", "suvr_range": [0.0, 3.0]}
            assert info["reference_region"] == REFERENCE[what]
            assert (info["frames"]["number"], info["frames"]["weights"]) == (2, "FrameDuration")
    for tracer, training in trained.items():
        template = nib.load(config.volumes / f"template_{tracer}.nii.gz")
        np.testing.assert_allclose(template.get_fdata(), np.mean(training, axis=0), atol=1e-6)
        np.testing.assert_allclose(template.affine, GRID.affine)
    assert str(config.root) not in (config.volumes / "index.csv").read_text()
    assert (index["flags"] == "").all()
    assert index["t1_correlation"].min() > 0.8


RUN = [15] * 4 + [30] * 4 + [60] * 5 + [120] * 4 + [300] * 12  # seconds of 29 frames from injection on: 76 minutes
FROM_INJECTION = {"FrameDuration": RUN, "FrameTimesStart": np.cumsum([0, *RUN[:-1]]).tolist(), "InjectionStart": 0}
LATE = {"FrameDuration": [300] * 4, "FrameTimesStart": [0, 300, 600, 900], "ScanStart": 0}
AV45, TAU, FBB = "18FAV45", "18FAV1451", "18FFBB"
NO_TIMES = {"FrameDuration": [60, 240, 300]}


WINDOW = ([24, 25, 26, 27], 20, [51, 71])
"""Frames, their minutes in all, and minutes after injection."""


@pytest.mark.parametrize(("tracer", "sidecar", "expected"), [
    (AV45, FROM_INJECTION, WINDOW),
    (AV45, {key: (1000 * np.array(value)).tolist() for key, value in FROM_INJECTION.items()}, WINDOW),  # milliseconds
    (AV45, FROM_INJECTION | {"FrameTimesStart": [t / 60 for t in FROM_INJECTION["FrameTimesStart"]]}, WINDOW),
    (AV45, FROM_INJECTION | {"FrameDuration": None}, WINDOW),
    (AV45, {"FrameDuration": RUN, "InjectionStart": 0, "ScanStart": 0}, WINDOW),
    (AV45, FROM_INJECTION | {"InjectionStart": None}, WINDOW),
    ("none", FROM_INJECTION, (None, 76, [0, 76])),  # no window is known
    (AV45, LATE | {"InjectionStart": -3000}, (None, 20, [50, 70])),
    (AV45, LATE | {"InjectionStart": 0, "ScanStart": 3000}, (None, 20, [50, 70])),  # counted from the scan's start
    (AV45, LATE | {"InjectionStart": 0}, (None, 20, [0, 20])),
    (AV45, LATE, (None, 20, None)),  # injection unknown
    (AV45, LATE | {"InjectionStart": 3000}, (None, 20, None)),  # before the injection
    (AV45, LATE | {"FrameTimesStart": [900, 600, 300, 0], "InjectionStart": -3000}, (None, 20, None)),
    (AV45, LATE | {"FrameTimesStart": [0] * 4, "InjectionStart": -3000}, (None, 20, None)),
    (FBB, {"FrameDuration": [600] * 6 + [300] * 4, "InjectionStart": 0,
           "FrameTimesStart": [*range(0, 3600, 600), 5400, 5700, 6000, 6300]}, ([6, 7, 8, 9], 20, [90, 110])),
    (TAU, {"FrameDuration": [1200000, 0], "FrameTimesStart": [0, 1200000], "InjectionStart": -4800000},
     (None, 40, [80, 120])),  # as in real sidecars
    (AV45, NO_TIMES, (None, 10, None)),
    (AV45, {"FrameDuration": [60000, 240000, 300000]}, (None, 10, None)),
    (AV45, {"FrameDuration": [300, 300, 300]}, (None, 15, None)),
])  # fmt: skip
def test_frames_of_the_window_are_averaged_by_duration(tmp_path, tracer, sidecar, expected):
    durations = np.array(sidecar["FrameDuration"] or RUN, float)
    durations[durations == 0] = durations.max()
    data = random_frames(len(durations))
    scan = read_pet(tmp_path, data, sidecar, tracer)
    used, span = expected[0] or range(len(durations)), expected[2]
    assert (scan.frames.get("used"), scan.frames["minutes"], scan.frames.get("minutes_after_injection")) == expected
    assert ("note" in scan.frames) == (span is None or tracer == "none")
    np.testing.assert_allclose(scan.data, np.average(data[..., used], axis=3, weights=durations[used]), rtol=1e-6)
    assert scan.data.dtype == np.float32


@pytest.mark.parametrize(("sidecar", "fault"), [
    ({"FrameDuration": [300, 0, 300]}, "FrameDuration has a frame of no duration"),
    ({"FrameDuration": [300, None, 300]}, "FrameDuration has a frame of no duration"),
    ({"FrameDuration": [-300, 300, 300]}, "FrameDuration has a frame of no duration"),
    ({"FrameDuration": [600, 300]}, "FrameDuration has 2 frames, the file 3"),
    ({"FrameDuration": 900}, "FrameDuration has 1 frames, the file 3"),
    ({"FrameDuration": "long"}, "no FrameDuration beside the scan"),
    ([300, 300, 300], "no FrameDuration beside the scan"),
    (None, "no FrameDuration beside the scan"),
])  # fmt: skip
def test_frames_without_durations_count_alike_and_are_noted(tmp_path, sidecar, fault):
    data = random_frames(3)
    scan = read_pet(tmp_path, data, sidecar)
    assert scan.frames["weights"] == f"equal: {fault}"
    assert fault in scan.frames["note"]
    np.testing.assert_array_equal(scan.data, data.mean(3))


def test_frames_without_content_are_left_out(tmp_path):
    """Empty or NaN frames do not count, nor does a hole in a frame outside the window; inside it is an error."""
    data = random_frames(29)
    data[..., 0], data[..., 25], data[4, 4, 4, 3] = 0, np.nan, np.nan
    scan = read_pet(tmp_path, data, FROM_INJECTION)
    assert (scan.frames["used"], scan.frames["empty"]) == ([24, 26, 27], [0, 25])
    np.testing.assert_allclose(scan.data, data[..., [24, 26, 27]].mean(3), rtol=1e-6)
    data[4, 4, 4, 26] = np.nan
    with pytest.raises(VolumeError, match="1 of 729 voxels are not finite"):
        read_pet(tmp_path, data, FROM_INJECTION)
    with pytest.raises(VolumeError, match="empty"):
        read_pet(tmp_path, 0 * data[..., :3], NO_TIMES)


@pytest.mark.parametrize("tracer", [TAU, FBB])
def test_scans_that_end_before_the_window_are_refused(tmp_path, tracer):
    with pytest.raises(VolumeError, match=f"frames from 0 to 76 min after injection, none in the window of {tracer}"):
        read_pet(tmp_path, random_frames(29), FROM_INJECTION, tracer)


OUTSIDE = "amyloid minutes outside window 50.00"


@pytest.mark.parametrize(("duration", "injection", "flags"), [
    (5400, 0, ["amyloid frame minutes 90.00", OUTSIDE]), (1200, 0, [OUTSIDE]), (1200, -3000, []),
], ids=["whole run", "early part", "window"])  # fmt: skip
def test_a_static_scan_outside_the_window_is_flagged(tmp_path, duration, injection, flags):
    sidecar = {"FrameDuration": [duration], "FrameTimesStart": [0], "InjectionStart": injection}
    frames = read_pet(tmp_path, random_frames(1), sidecar).frames
    names = {"minutes": "frame_minutes", "minutes_outside_window": "minutes_outside_window"}
    assert measure_flags({f"amyloid_{names[key]}": v for key, v in frames.items() if key in names}) == flags


@pytest.mark.parametrize(("sidecar", "injection"), [
    ({"FrameDuration": [300] * 29, "FrameTimesStart": [300 * i for i in range(29)], "InjectionStart": None}, 0),
    ({"FrameDuration": [300000] * 4, "FrameTimesStart": [0, 300000, 600000, 900000], "InjectionStart": -3e6}, -3000),
    (LATE | {"InjectionStart": -3000}, -3000),
], ids=["null", "milliseconds", "seconds"])  # fmt: skip
def test_the_sidecar_states_the_time_of_the_averaged_frames_in_seconds(tmp_path, sidecar, injection):
    scan = read_pet(tmp_path, random_frames(len(sidecar["FrameDuration"])), sidecar)
    entries, span = volumes._acquisition(tmp_path / "sub-1_pet.nii.gz", scan), scan.frames["minutes_after_injection"]
    assert (entries["InjectionStart"], entries["FrameTimesStart"]) == (injection, [injection + 60 * span[0]])
    assert entries["FrameDuration"] == [60 * (span[1] - span[0])]


def random_frames(number):
    return np.random.default_rng(0).uniform(1, 9, (9, 9, 9, number)).astype(np.float32)


def read_pet(folder, data, sidecar, tracer=AV45):
    """A PET written with its sidecar, and read again."""
    path = folder / "sub-1_pet.nii.gz"
    nib.save(nib.Nifti1Image(data, np.diag([4, 4, 4, 1])), path)
    sidecar_path(path).write_text(json.dumps(sidecar)) if sidecar else sidecar_path(path).unlink(missing_ok=True)
    return read_scan(path, frames=True, tracer=tracer)


def test_status_comes_from_the_manifest_or_the_cutoff(cohort):
    config, _, _ = cohort
    frame = read_manifest(config.manifest).iloc[[0] * 4].reset_index(drop=True)
    frame["amyloid_tracer"] = ["18FAV45", "18FAV45", "18FFBB", "11CPIB"]
    frame.loc[1, ["amyloid_suvr", "tau_status"]] = 1.40, 0
    measured = {"t1_correlation": 0.9, "amyloid_suvr": 1.10, "tau_suvr": 1.30}
    outputs = dict.fromkeys(("t1w", *TRACERS), "file.nii.gz")
    index = volumes._index(config, frame, [{"measured": measured, "outputs": outputs}] * 4)
    assert index["amyloid_suvr"].tolist() == [1.10, 1.40, 1.10, 1.10]
    assert index["amyloid_status"].fillna(-1).tolist() == [0, 1, 1, -1]  # 1.11, given, 1.08, no cut-off known
    assert index["tau_status"].tolist() == [1, 0, 1, 1]


def test_flags_name_the_scan_the_measure_and_its_value():
    fine = {"t1_correlation": 0.9, "tau_similarity": 1.2, "tau_suvr": 9.0, "tau_reference_cov": 0.2}
    assert measure_flags(fine) == []
    bad = fine | {"t1_correlation": 0.31, "tau_similarity": 1.01, "tau_suvr_max": 8.5, "tau_clipped_percent": 0.51}
    info = ["t1 correlation 0.31", "tau similarity 1.01", "tau suvr max 8.50", "tau clipped percent 0.51"]
    assert measure_flags(bad) == info
    assert measure_flags(bad | {"tau_clipped_percent": 0.49}) == info[:3]
    assert measure_flags({"amyloid_frame_minutes": 20.0}) == []  # a late window
    assert measure_flags({"amyloid_frame_minutes": 60.0}) == ["amyloid frame minutes 60.00"]  # from injection on


def test_a_shifted_pet_is_flagged(cohort):
    """Three voxels to the front: less is shared with the T1, and every phantom falls below the limit."""
    config, index, _ = cohort
    brain = mni_map("brain", GRID)
    for row in index.to_dict("records"):
        t1 = loaded(config.volumes / row["t1w"])
        for tracer in TRACERS:
            if row[tracer]:
                slipped = np.roll(loaded(config.volumes / row[tracer]), 3, axis=1)
                shared = shared_information(*(blur(v, GRID)[brain] for v in (t1, slipped)))
                assert shared < LIMITS["similarity"][0] < row[f"{tracer}_similarity"]


def test_options_of_intensity_and_smoothing():
    visit = make_visit(4)
    brain, masks = mni_map("brain", GRID), regions(GRID)

    def pet(**options):
        settings = make_config(None, **options).preprocess
        return pet_on_grid(visit.pet, visit.t1_to_pet @ visit.mni_to_t1, "amyloid", settings, "pet.nii.gz")

    fixed, info, measured = pet(suvr_range={"amyloid": (0.5, 2.0), "tau": (0.0, 3.0)})
    suvr = 0.5 + 1.5 * fixed
    assert suvr[masks["cerebellum"]].mean() == pytest.approx(1, abs=0.02)
    summary = np.any([masks[name] for name in SUMMARY["amyloid"]], axis=0)
    assert suvr[summary].mean() == pytest.approx(measured["suvr"], abs=0.01)
    # clipped voxels are counted, and regions measured before: a range of another width changes neither SUVR nor region
    edges = (fixed == 0) | (fixed == 1)
    assert measured["clipped_percent"] == info["clipped_percent"] == pytest.approx(100 * edges[brain].mean())
    assert measured["clipped_percent"] > 0.5
    wide, beyond, more = pet(suvr_range={"amyloid": (-1.0, 9.0), "tau": (0.0, 3.0)}, mask=False)
    assert more["clipped_percent"] == 0
    assert info["regional_suvr"] == beyond["regional_suvr"]
    assert more["suvr"] == measured["suvr"] == info["regional_suvr"]["summary"]
    for name, mask in masks.items():
        assert info["regional_suvr"][name] == pytest.approx((10 * wide[mask] - 1).mean(), abs=1e-5)
    assert wide[~brain].any()
    assert not fixed[~brain].any()
    literal, info, _ = pet(intensity="minmax")
    assert (info["clipped_percent"], info["intensity"]["kind"]) == (0, "minmax")
    assert info["intensity"]["suvr_range"][1] == pytest.approx(measured["suvr_max"])
    assert (literal[brain].min(), literal[brain].max()) == (0, 1)
    assert pet(smooth_mm=8.0)[2]["suvr_max"] < measured["suvr_max"]


@pytest.mark.parametrize("fwhm", [6.0, 8.0])
def test_smoothing_adds_in_squares(fwhm):
    """A blob of 6 mm FWHM, in voxels of unequal size, becomes one of √(6² + FWHM²) along every axis of the grid."""
    grid, source, centre = Grid((64, 64, 64), 2.0), np.diag([1.5, 2.0, 2.5, 1.0]), np.array([0.0, -17, 5])
    source[:3, 3] = centre - np.diag(source)[:3] * 31.5
    away = apply_affine(source, np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"), -1)) - centre
    blob = np.exp(-(away**2).sum(-1) / (2 * (6 / 2.3548) ** 2)).astype(np.float32)
    smoothed = resample(smooth(Scan(blob, source), fwhm), grid.affine, grid.shape)
    away = grid.mm() - centre[:, None, None, None]
    found = 2.3548 * np.sqrt((away**2 * smoothed).reshape(3, -1).sum(1) / smoothed.sum())
    np.testing.assert_allclose(found, np.sqrt(36 + fwhm**2), rtol=0.05)


# ── done once ─────────────────────────────────────────────────────────────────────────────────────


def test_resume_after_a_kill_gives_the_same_bytes(cohort, tmp_path, monkeypatch):
    """Killed in the third session; the next call, with two processes, does the others and no more."""
    config, _, _ = cohort
    shutil.copytree(config.work / "bids", tmp_path / "work/tiny/bids")
    other = dataclasses.replace(config, root=tmp_path)
    shutil.copy(config.manifest, other.manifest)
    write, calls = volumes._write_session, []

    def dies(config, row):
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(config, row)

    monkeypatch.setattr(volumes, "_write_session", dies)
    with pytest.raises(KeyboardInterrupt):
        preprocess(other, progress=False)
    monkeypatch.undo()
    survived = state(other.volumes)
    assert sum(name.endswith("_desc-preproc.json") for name in survived) == 2
    assert "index.csv" not in survived
    preprocess(other, jobs=2, progress=False)
    after = state(other.volumes)
    assert all(after[name] == time for name, time in survived.items())
    assert digests(other.volumes) == digests(config.volumes)


def changed(config, before, **options):
    """The index after another preprocessing, and files that it removed or wrote anew."""
    index = preprocess(config, progress=False, **options)
    after = state(config.volumes)
    return index, {name for name in before if after.get(name) != before[name]}


def test_only_changed_sessions_are_repeated(copy):
    """A new split repacks; a rewritten scan and a scan that left redo their sessions; a mere touch nothing."""
    before = state(copy.volumes)
    assert changed(copy, before, jobs=2)[1] == set()
    frame = read_manifest(copy.manifest)
    moved = frame["person"] == frame.loc[frame["split"] == "train", "person"].iloc[0]
    frame.loc[moved, "split"] = "test"
    write_manifest(frame, copy.manifest)
    index, repacked = changed(copy, before)
    assert repacked == {
        ".record.json", "cohort.json", "cohort.npy", "index.csv", "dataset_description.json", "README",
        ".bidsignore", "template_amyloid.nii.gz", "template_tau.nii.gz",
    }  # fmt: skip
    assert set(index.loc[moved, "split"]) == {"test"}

    (copy.source_root / NAME).unlink()  # scans of people have no record, and may be replaced
    both = frame[(frame["amyloid"] != "") & (frame["tau"] != "")]
    first, second, third = (both.iloc[i] for i in range(3))
    image = nib.load(first["tau"])
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 1.5, image.affine, image.header), first["tau"])
    os.utime(second["t1w"])
    frame.loc[third.name, ["tau", "tau_tracer"]] = ""
    write_manifest(frame, copy.manifest)
    _, written = changed(copy, state(copy.volumes))
    assert {name.split("/")[0] for name in written if "/" in name} == {first["person"], third["person"]}
    assert not list((copy.volumes / third["person"] / third["session"] / "pet").glob("*AV1451*"))
    assert len(CohortDataset(copy, "train")) == (frame["split"] == "train").sum()

    other = dataclasses.replace(copy, preprocess=dataclasses.replace(copy.preprocess, n4=False))
    write_manifest(frame.iloc[:2].assign(split="train"), copy.manifest)
    before = digests(copy.volumes)
    index = preprocess(other, progress=False)
    assert all(before[path] != (copy.volumes / path).read_bytes() for path in index["t1w"])


# ── refused ───────────────────────────────────────────────────────────────────────────────────────


def head(shape=(20, 20, 20)):
    return np.random.default_rng(0).random(shape, dtype=np.float32) + 0.1


def test_an_unusable_manifest_stops_before_any_work(copy):
    shutil.rmtree(copy.volumes)
    frame = read_manifest(copy.manifest)
    coarse = dataclasses.replace(copy, preprocess=PreprocessConfig(grid=GridConfig((16, 16, 16), 2.0)))
    with pytest.raises(ValueError, match="holds no voxel of region"):
        preprocess(coarse, progress=False)
    write_manifest(frame.assign(split=""), copy.manifest)
    with pytest.raises(ManifestError, match="has no split; make the manifest again"):
        preprocess(copy, progress=False)
    assert not copy.volumes.exists()


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_field_of_view_that_cuts_the_reference_region_does_not_raise_suvr(tracer):
    """A fifth and more of the cerebellum below the scan's edge: counted as 0 it would raise SUVR by as much."""
    visit = make_visit(5)
    settings, mni_to_pet = make_config(None).preprocess, visit.t1_to_pet @ visit.mni_to_t1
    _, _, whole = pet_on_grid(visit.pet, mni_to_pet, tracer, settings, "pet.nii.gz")
    to_pet = np.linalg.inv(visit.pet.affine) @ mni_to_pet
    voxels = apply_affine(to_pet, GRID.mm()[:, regions(GRID)[REFERENCE[tracer]]].T)
    axis = int(np.argmax(np.abs(to_pet[:3, 2])))  # of the scan, along the body
    up = to_pet[axis, 2] > 0
    cut = int(np.quantile(voxels[:, axis], 0.3 if up else 0.7))
    keep = [slice(None)] * 3
    keep[axis] = slice(cut, None) if up else slice(None, cut + 1)
    shift = np.eye(4)
    shift[axis, 3] = cut if up else 0
    cropped = dataclasses.replace(visit.pet, data=visit.pet.data[tuple(keep)], affine=visit.pet.affine @ shift)
    _, info, part = pet_on_grid(cropped, mni_to_pet, tracer, settings, "pet.nii.gz")
    assert whole["reference_coverage"] == 1
    assert 0.55 < part["reference_coverage"] < 0.9
    assert part["suvr"] == pytest.approx(whole["suvr"], rel=0.05)
    assert info["reference_mean"] == pytest.approx(whole["reference_mean"], rel=0.05)
    assert any("reference coverage" in flag for flag in measure_flags({f"{tracer}_{k}": v for k, v in part.items()}))


def test_a_volume_that_is_not_what_was_written_is_refused_and_made_again(copy):
    index = pd.read_csv(copy.volumes / "index.csv")
    path, other = copy.volumes / index["t1w"][0], Grid((30, 32, 32), 6.0)
    before = digests(copy.volumes)
    nib.save(other.image(np.zeros(other.shape, np.float32)), path)
    with pytest.raises(ValueError, match=rf"{path}: volumes of unequal grid: found \(30, 32, 32\)"):
        GRID.read(path)
    with pytest.raises(RecordError, match=f"{path}: changed since `resdm preprocess tiny` wrote it"):
        checked(path)
    preprocess(copy, progress=False)
    assert digests(copy.volumes) == before


# ── one MRI ───────────────────────────────────────────────────────────────────────────────────────


def test_a_single_mri_equals_the_cohort_volume(cohort):
    config, index, _ = cohort
    frame = read_manifest(config.manifest)
    array, info = preprocess_mri(frame["t1w"][0], config)
    np.testing.assert_array_equal(array, loaded(config.volumes / index["t1w"][0]))
    assert info["transform"] == sidecar(config.volumes / index["t1w"][0])["transform"]
    json.dumps(info)


@pytest.mark.parametrize(("name", "shape", "sidecar", "message"), [
    ("sub-1_ct.nii.gz", (20,) * 3, {}, "a CT by its name; expected a T1-weighted MRI"),
    ("sub-1_T2w.nii", (20,) * 3, {}, "a T2-weighted MRI by its name; expected a T1-weighted MRI"),
    ("sub-1_FLAIR.nii.gz", (20,) * 3, {}, "a FLAIR MRI by its name; expected a T1-weighted MRI"),
    ("sub-1_trc-x_pet.nii.gz", (20,) * 3, {}, "a PET by its name; expected a T1-weighted MRI"),
    ("series.nii.gz", (20, 20, 20, 2), {}, "expected one 3D volume"),
    ("scan.nii.gz", (20,) * 3, {"Modality": "PT"}, "modality PT by"),
    ("scan.nii.gz", (20,) * 3, {"Modality": "CT"}, "modality CT by"),
    ("scan.nii.gz", (20,) * 3, {"TracerName": "FBP"}, "modality PT by"),
    ("noise_T1w.nii.gz", (50, 60, 50), {"Modality": "MR"}, "does not fit the MNI152 T1"),
])  # fmt: skip
def test_other_images_than_t1_are_refused(tmp_path, name, shape, sidecar, message):
    path = save(tmp_path / name, head(shape), np.diag([4.0, 4, 4, 1]))
    write_json(sidecar_path(path), sidecar)
    with pytest.raises(VolumeError, match=message):
        preprocess_mri(path, make_config(tmp_path))


def is_t1(scan, mni_to_scan):
    try:
        return bool(check_contrast(scan, mni_to_scan, 1.0, "x.nii.gz"))
    except VolumeError:
        return False


FINE = Grid((80, 96, 80), 2.0)
GREY_WHITE_FLUID = {  # levels of tissues, and resolution in mm: PET relative to the cerebellum
    "T1": (0.65, 1.0, 0.25, 2), "T1 of little contrast": (0.9, 1.0, 0.4, 2), "T1 smoothed": (0.65, 1.0, 0.25, 4),
    "T2": (0.7, 0.5, 1.0, 2), "FLAIR": (0.9, 0.7, 0.15, 2), "proton density": (0.95, 0.8, 1.0, 2),
    "CT": (0.38, 0.3, 0.1, 2), "amyloid-negative": (1.05, 1.75, 0.3, 7), "amyloid-positive": (1.5, 1.8, 0.3, 7),
    "PIB-positive": (2.2, 1.8, 0.4, 6), "tau": (1.05, 0.95, 0.4, 7), "FDG": (1.3, 0.7, 0.2, 5),
    "mean amyloid PET of a population": (1.05, 1.75, 0.15, 10), "mean tau PET": (1.2, 1.0, 0.3, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", GREY_WHITE_FLUID)
@pytest.mark.parametrize(("bias", "noise"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.12)], ids=["flat", "biased", "noisy"])
def test_the_contrast_of_a_t1_is_recognised_under_any_smooth_bias_and_noise(name, bias, noise):
    """``bias`` 1.5: bright in the middle as at 7 T, and 5 times as bright on one side as on the other."""
    *levels, fwhm = GREY_WHITE_FLUID[name]
    gm, wm, brain = (mni_map(tissue, FINE) for tissue in ("gm", "wm", "brain"))
    image = sum(level * tissue for level, tissue in zip(levels, (gm, wm, brain * (1 - gm - wm)), strict=True))
    x, y, z = (FINE.mm() - np.reshape(CENTRE_MM, (3, 1, 1, 1))) / 80
    image = image.clip(0) * np.exp(-bias * (x**2 + y**2 + z**2 / 2 + 0.6 * y))
    scan = smooth(Scan(image.astype(np.float32), FINE.affine), np.sqrt(max(fwhm**2 - 1.6**2, 0)))
    scan.data[brain] += noise * scan.data[brain].mean() * np.random.default_rng(0).normal(size=brain.sum())
    assert is_t1(scan, np.eye(4)) == name.startswith("T1")


def test_a_real_t1_fits_the_mni_brain_and_is_accepted_whole_or_stripped(real_t1, tmp_path):
    """Dice well above 0.9, on the grid of the small profiles; the brain as the file has it, holes filled."""
    config = make_config(tmp_path, mask=False)
    whole, info = preprocess_mri(real_t1, config)
    scan, mni, transform = read_scan(real_t1), mni_map("brain", GRID), np.array(info["transform"])
    inside = dataclasses.replace(scan, data=(scan.data > 0.02 * scan.data.max()).astype(np.float32))
    brain = ndimage.binary_fill_holes(resample(inside, GRID.affine, GRID.shape, transform) > 0.5)
    assert 2 * (brain & mni).sum() / (brain.sum() + mni.sum()) > 0.94
    assert info["t1_correlation"] > 0.78
    assert whole[mni].mean() > 5 * whole[~mni].mean()
    brain = resample(Scan(mni.astype(np.float32), GRID.affine), scan.affine, scan.data.shape, np.linalg.inv(transform))
    stripped = save(tmp_path / "brain_T1w.nii.gz", np.where(brain > 0.5, scan.data, 0), scan.affine)
    alone, stripped_info = preprocess_mri(stripped, config)
    inner = ndimage.binary_erosion(mni, iterations=2)
    assert np.corrcoef(whole[inner], alone[inner])[0, 1] > 0.98
    for contrast in (info, stripped_info):
        assert contrast["fluid"] < 0.52
        assert 0.2 < contrast["depth"] < 0.4
        assert contrast["detail"] > 0.8

    def coarser(mm):
        affine = scan.affine @ np.diag([*[mm / 0.8] * 3, 1])
        return Scan(resample(scan, affine, tuple((0.8 * np.array(scan.data.shape) / mm).astype(int))), affine)

    for low in (coarser(4.5), smooth(scan, (0, 0, 6)), smooth(scan, (0, 6, 0)), smooth(scan, 4)):
        assert is_t1(low, transform)
    coarse = save(tmp_path / "coarse_T1w.nii.gz", coarser(5).data, coarser(5).affine)
    with pytest.raises(VolumeError, match=r"voxels of 5\.0 mm \(mean of the three axes\), expected 4\.5 or less"):
        preprocess_mri(coarse, config)


RIGHT, SHEARED = np.diag([4.0, 4, 4, 1]), np.diag([4.0, 4, 4, 1])
SHEARED[0, 1] = 0.8  # a qform cannot hold a shear
MIRRORED, MOVED = np.diag([-1.0, 1, 1, 1]) @ RIGHT, RIGHT + np.diag([33.0], 3)


@pytest.mark.parametrize(("sform", "qform", "codes", "expected"), [
    (RIGHT, MIRRORED, (1, 1), "sform and qform disagree on which side is left"),
    (RIGHT, MIRRORED, (4, 1), "sform and qform disagree on which side is left"),
    (RIGHT, MOVED, (1, 1), r"sform and qform \(both of code 1\) put a corner 33 mm apart"),
    (MOVED, RIGHT, (4, 1), MOVED),  # two spaces: the sform's
    (RIGHT, MOVED, (1, 0), RIGHT), (RIGHT, MOVED, (0, 1), MOVED), (SHEARED, SHEARED, (1, 1), SHEARED),
])  # fmt: skip
def test_sform_and_qform(tmp_path, sform, qform, codes, expected):
    image = nib.Nifti1Image(head(), RIGHT)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, tmp_path / "x_T1w.nii.gz")
    if isinstance(expected, str):
        with pytest.raises(VolumeError, match=expected):
            read_scan(tmp_path / "x_T1w.nii.gz")
    else:
        np.testing.assert_allclose(read_scan(tmp_path / "x_T1w.nii.gz").affine, expected)
