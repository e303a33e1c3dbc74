"""Bad scans end to end: an error names file and remedy, and finished results stay."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, changed, digests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_scans import make_visit, save
from scipy import ndimage

from resdm.io import WriteError, write_csv
from resdm_suite.cohorts.manifest import EMPTY, ManifestError, read_manifest, write_manifest
from resdm_suite.preprocessing import volumes
from resdm_suite.preprocessing.measures import LIMITS
from resdm_suite.preprocessing.scans import VolumeError, form_difference, read_scan
from resdm_suite.preprocessing.volumes import cohort_flow, preprocess
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig

GRID = GridConfig((24, 24, 24), 8.0)
SHIFT = np.array([[0, 0, 0, 900.0], [0] * 4, [0] * 4, [0] * 4])


def make_config(root) -> Config:
    settings = PreprocessConfig(grid=GRID, registration_mm=8.0, n4=False)
    return Config(profile="bad", cohort=CohortConfig(phantom=PhantomConfig()), preprocess=settings, root=root)


def manifest(config, *people):
    rows = []
    for person in people:
        files = {what: str(config.work / "scans" / f"{person}_{name}.nii.gz") for what, name in NAMES.items()}
        session = {"session": "ses-1", "age": 70.0, "sex": "F", "split": "train"}
        rows.append(EMPTY | {"person": person, **session, **files, "amyloid_tracer": "18FAV45"})
    return pd.DataFrame(rows)


NAMES = {"t1w": "T1w", "amyloid": "pet"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One person, preprocessed, and a second whose scans lie there, good too."""
    config = make_config(tmp_path_factory.mktemp("good"))
    for person, seed in (("sub-good", 1), ("sub-other", 2)):
        visit = make_visit(seed)
        save(config.work / "scans" / f"{person}_T1w.nii.gz", visit.t1.data, visit.t1.affine)
        save(config.work / "scans" / f"{person}_pet.nii.gz", visit.pet.data, visit.pet.affine)
    write_manifest(manifest(config, "sub-good"), config.manifest)
    preprocess(config, progress=False)
    return config


@pytest.fixture
def config(good, tmp_path):
    """The same in a separate folder, and the second person in the manifest."""
    shutil.copytree(good.work, tmp_path / "work" / "bad")
    config = make_config(tmp_path)
    write_manifest(manifest(config, "sub-good", "sub-other"), config.manifest)
    return config


# ── faults: each replaces a scan, given its path, data and affine ───────────────────────────────────


def stored(change=lambda data: data, affine=lambda affine: affine, codes=(1, 1), kind=np.float32):
    def spoil(path, data, old):
        save(path, change(data).astype(kind), affine(old), codes)

    return spoil


def raw(change):
    return lambda path, data, affine: path.write_bytes(change(path.read_bytes()))


def header(**fields):
    """Fields written into the bytes of the header, past what nibabel would let through."""

    def spoil(path, data, affine):
        plain = bytearray(gzip.decompress(path.read_bytes()))
        head = nib.Nifti1Header(bytes(plain[:348]), check=False)
        for name, value in fields.items():
            head[name] = value
        plain[:348] = head.binaryblock
        path.write_bytes(gzip.compress(bytes(plain)))

    return spoil


def holed(value):
    def change(data):
        data = data.copy()
        data[9, 9, 9] = value
        return data

    return change


def replaced(make):
    """Something else in the file's place."""
    return lambda path, *_: (path.unlink(), make(path))


def analyze(path, data, affine):
    """Analyze 7.5 under the name of a NIfTI: without the magic, and the coordinates in the qform's place."""
    image = nib.AnalyzeImage(data, None)
    image.header.set_zooms((3.4, 3.4, 3.6))
    image.to_filename(path.with_name("old.img"))
    image = bytearray(path.with_name("old.hdr").read_bytes()) + bytes(4) + path.with_name("old.img").read_bytes()
    path.write_bytes(gzip.compress(bytes(image)))


def resized(change):
    """Other bytes after the header, compressed again."""
    return raw(lambda b: gzip.compress(change(gzip.decompress(b))))


def without_cerebellum(path, data, affine):
    """Only the upper third of the field of view, as if the bed had stood too low."""
    axis = int(np.argmax(np.abs(affine[2, :3])))
    keep = slice(None, data.shape[axis] // 3) if affine[2, axis] < 0 else slice(-(data.shape[axis] // 3), None)
    cut = affine.copy()
    if affine[2, axis] > 0:
        cut[:3, 3] += affine[:3, axis] * (data.shape[axis] - data.shape[axis] // 3)
    save(path, np.ascontiguousarray(data[(slice(None),) * axis + (keep,)]), cut)


BAD = {
    "T1 missing": ("T1w", lambda path, *_: path.unlink(), "expected a file; correct the path"),
    "PET missing": ("pet", lambda path, *_: path.unlink(), "expected a file; correct the path"),
    "T1 truncated": ("T1w", raw(lambda b: b[: len(b) // 2]), "cannot be read as NIfTI"),
    "PET truncated": ("pet", raw(lambda b: b[: len(b) - 200]), "cannot be read as NIfTI"),
    "gzip with a broken byte": ("pet", raw(lambda b: b[:3000] + bytes([b[3000] ^ 255]) + b[3001:]), "cannot be read"),
    "empty file": ("T1w", raw(lambda b: b""), "cannot be read as NIfTI"),
    "text": ("T1w", raw(lambda b: b"<html>404</html>"), "cannot be read as NIfTI"),
    "not gzipped": ("T1w", raw(gzip.decompress), "cannot be read as NIfTI"),
    "NaN": ("T1w", stored(holed(np.nan)), "1 of 222720 voxels are not finite"),
    "infinity": ("pet", stored(holed(np.inf)), "1 of 134400 voxels are not finite"),
    "all-zero PET": ("pet", stored(lambda d: 0 * d), "empty, all voxels lie from 0 to 0"),
    "constant T1": ("T1w", stored(lambda d: 0 * d + 7), "empty, all voxels lie from 7 to 7"),
    "T1 with several volumes": ("T1w", stored(lambda d: np.stack([d] * 3, -1)), "4 dimensions (58, 64, 60, 3)"),
    "2D": ("T1w", stored(lambda d: d[:, :, 30]), "found 2 dimensions"),
    "one slice": ("pet", stored(lambda d: d[:, :, 20:21]), "8 or more an axis"),
    "5D": ("pet", stored(lambda d: np.stack([np.stack([d] * 2, -1)] * 2, -1)), "found 5 dimensions"),
    "tiny": ("T1w", stored(lambda d: d[:5, :5, :5]), "8 or more an axis"),
    "complex": ("T1w", stored(kind=np.complex64), "voxels of type complex64"),
    "in metres": ("T1w", stored(affine=lambda a: np.diag([1e-3, 1e-3, 1e-3, 1]) @ a), "are the units millimetres?"),
    "in microns": ("pet", stored(affine=lambda a: np.diag([1e3, 1e3, 1e3, 1]) @ a), "are the units millimetres?"),
    "header of metres": ("T1w", header(xyzt_units=1), "its header counts in meter, expected mm"),
    "header of microns": ("pet", header(xyzt_units=3), "its header counts in micron, expected mm"),
    "voxels of size 0": ("T1w", header(sform_code=0, pixdim=[1, 0, 0, 0, 1, 1, 1, 1]), "voxels of 0 × 0 × 0 mm"),
    "no orientation": ("T1w", stored(codes=(0, 0)), "left and right are unknown"),
    "singular affine": ("T1w", header(srow_x=[0, 0, 0, 0], qform_code=0), "its affine does not map to millimetres"),
    "affine of NaN": ("T1w", header(srow_x=[np.nan] * 4, qform_code=0), "its affine does not map to millimetres"),
    "quaternion beyond 1": ("T1w", header(quatern_b=1.5), "its qform is no rotation; set its code to 0 if"),
    "another quaternion a hair beyond 1": (
        "T1w", header(quatern_b=0, quatern_c=0.707107, quatern_d=0.707108), "sform and qform"),
    "unknown code": ("T1w", header(sform_code=7), "codes (7, 1) are not those of NIfTI"),
    "negative code": ("T1w", header(sform_code=-1, qform_code=0), "codes (-1, 0) are not those of NIfTI"),
    "unknown units": ("T1w", header(xyzt_units=7), "its header counts in no known unit, expected mm"),
    "voxels of NaN": ("T1w", header(pixdim=[1, np.nan, 3, 3, 1, 1, 1, 1]), "voxels of nan × 3 × 3 mm"),
    "infinite slope": ("pet", header(scl_slope=np.inf), "scl_slope is infinite"),
    "intercept of NaN": ("pet", header(scl_slope=1, scl_inter=np.nan), "invalid intercept nan"),
    "slope beyond float32": ("pet", header(scl_slope=3e38), "voxels are not finite"),
    "negative axes": ("T1w", header(dim=[3, -58, -64, 60, 1, 1, 1, 1]), "found (-58, -64, 60) voxels, expected"),
    "more voxels than the file": ("T1w", header(dim=[3, 1800, 1800, 1800, 1, 1, 1, 1]), "the file holds 891232"),
    "fewer voxels than the file": ("T1w", header(dim=[3, 58, 64, 59, 1, 1, 1, 1]), "the file holds more"),
    "offset beyond the file": ("pet", header(vox_offset=1e9), "its header states 1000537600 bytes"),
    "offset of NaN": ("pet", header(vox_offset=np.nan), "cannot be read as NIfTI"),
    "offset inside the header": ("T1w", header(vox_offset=0), "vox_offset is 0: the voxels would begin inside"),
    "coloured": ("T1w", header(datatype=128, bitpix=24), "expected plain numbers"),
    "unknown type": ("T1w", header(datatype=999), "data code 999 not recognized"),
    "no magic": ("T1w", header(magic=b"abc"), "cannot be read as NIfTI"),
    "Analyze 7.5": ("T1w", analyze, "cannot be read as NIfTI"),
    "half of the voxels": ("T1w", resized(lambda b: b[: len(b) // 2]), "the file holds 445616"),
    "twice the voxels": ("pet", resized(lambda b: b + b[352:]), "one of them is of another scan"),
    "only a header": ("pet", resized(lambda b: b[:352]), "the file holds 352"),
    "T1 as blurred as a PET": ("T1w", stored(lambda d: ndimage.gaussian_filter(d, 1.2)), "looks like a PET, not a T1"),
    "T1 turned into its negative": (
        "T1w", stored(lambda d: (d > 0.1 * d.max()) * (1.2 * d.max() - d)), "fluid is as bright|does not fit"),
    "CT": ("T1w", stored(lambda d: np.where(d > 80, 40, -1000)), "as air does in a CT"),
    "negative PET": ("pet", stored(lambda d: -d), "empty, all voxels lie from"),
    "negative reference region": ("pet", stored(lambda d: d - 0.98 * d.max()), "reference region (cerebellum)"),
    "no cerebellum": ("pet", without_cerebellum, "does the scan cover the cerebellum"),
    "folder": ("T1w", replaced(Path.mkdir), "expected a file"),
    "loop of links": ("pet", replaced(lambda path: path.symlink_to(path.name)), "expected a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_scan_is_named_and_results_stay(config, name):
    which, spoil, message = BAD[name]
    path = config.work / "scans" / f"sub-other_{which}.nii.gz"
    image = nib.load(path)
    data, affine = image.get_fdata(dtype=np.float32), image.affine
    made = digests(config.volumes)
    spoil(path, data, affine)
    with pytest.raises((VolumeError, ManifestError)) as error:
        preprocess(config, progress=False)
    text = str(error.value)
    assert str(path) in text
    assert any(part in text for part in message.split("|"))
    assert any(mark in text for mark in (";", "?")), "states the remedy"
    assert digests(config.volumes).items() >= made.items()


def test_unusual_but_valid_scans_pass(config):
    """A PET of one frame in 4D, units that the header leaves open, and another space's qform."""
    scans = config.work / "scans"
    image = nib.load(scans / "sub-other_pet.nii.gz")
    save(scans / "sub-other_pet.nii.gz", image.get_fdata(dtype=np.float32)[..., None], image.affine)
    header(xyzt_units=0)(scans / "sub-other_pet.nii.gz", None, None)
    t1 = nib.load(scans / "sub-other_T1w.nii.gz")
    t1 = nib.Nifti1Image(t1.get_fdata(dtype=np.float32), t1.affine)
    t1.set_sform(t1.affine, code=2)
    t1.set_qform(t1.affine + SHIFT, code=1)
    nib.save(t1, scans / "sub-other_T1w.nii.gz")
    assert len(preprocess(config, progress=False)) == 2


@pytest.mark.parametrize(("column", "file", "message"), [
    ("t1w", "sub-other_pet", "by its name no t1w scan; put each scan in the correct column"),
    ("amyloid", "sub-other_T1w", "by its name no amyloid scan; put each scan in the correct column"),
    ("amyloid", "uptake", r"uptake\.nii\.gz: the same bytes as the session's t1w"),
])  # fmt: skip
def test_a_scan_in_the_wrong_column_or_twice_is_named(config, column, file, message):
    scans = config.work / "scans"
    shutil.copy(scans / "sub-other_T1w.nii.gz", scans / "uptake.nii.gz")
    frame = read_manifest(config.manifest)
    frame.loc[1, column] = str(scans / f"{file}.nii.gz")
    write_manifest(frame, config.manifest)
    with pytest.raises(VolumeError, match=message):
        preprocess(config, progress=False)


def test_a_pet_of_other_content_is_flagged(config):
    """Noise where the PET should be: nothing forbids it, but it shares nothing with the T1."""
    path = config.work / "scans" / "sub-other_pet.nii.gz"
    image = nib.load(path)
    save(path, np.random.default_rng(0).random(image.shape, dtype=np.float32), image.affine)
    index = preprocess(config, progress=False)
    assert index["flags"][0] == ""
    assert "amyloid similarity 1.0" in index["flags"][1]


def test_an_unreadable_file_is_named(config, monkeypatch):
    def refuse(path, *args, **kwargs):
        if "sub-other_T1w" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return load(path, *args, **kwargs)

    load = nib.load
    monkeypatch.setattr(volumes.nib, "load", refuse)
    with pytest.raises(VolumeError, match=r"sub-other_T1w\.nii\.gz: cannot be read as NIfTI .*Permission denied"):
        preprocess(config, progress=False)


# ── write errors ─────────────────────────────────────────────────────────────────


def test_a_file_where_the_folder_must_be_is_named(config):
    made = digests(config.volumes)
    (config.volumes / "sub-other").write_text("in the way")
    with pytest.raises(WriteError, match=r"sub-other.*cannot be written.*a file is where a folder must be"):
        preprocess(config, progress=False)
    (config.volumes / "sub-other").unlink()
    assert digests(config.volumes) == made
    assert len(preprocess(config, progress=False)) == 2


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOSPC, "free space"), (errno.EROFS, "on a disk that can be"),
                                              (errno.EACCES, "change the permissions")])  # fmt: skip
def test_a_refused_write_is_named_and_the_next_call_continues(config, monkeypatch, code, remedy):
    made, save_image = digests(config.volumes), nib.save

    def full(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(volumes.nib, "save", full)
    with pytest.raises(WriteError, match=f"sub-other.*cannot be written.*{remedy}.*finished files stay"):
        preprocess(config, progress=False)
    assert digests(config.volumes) == made
    monkeypatch.setattr(volumes.nib, "save", save_image)
    assert len(preprocess(config, progress=False)) == 2


CALL = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])
import test_bad_scans as t
t.preprocess(t.make_config(Path(sys.argv[2])), progress=False)
"""


def test_a_full_disk(config):
    """The system refuses to let cohort.npy grow: an error with a remedy, no killed process, other files stay."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))  # the array takes 166 kB, a volume less

    done = subprocess.run([sys.executable, "-c", CALL, ROOT / "tests", config.root], preexec_fn=limit, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cohort.npy: cannot be written (File too large)" in done.stderr
    assert not list(config.volumes.glob(".[0-9]*"))
    volume = next((config.volumes / "sub-other").rglob("*_T1w.nii.gz"))
    written = volume.stat().st_mtime_ns
    assert len(preprocess(config, progress=False)) == 2
    assert volume.stat().st_mtime_ns == written


# ── excluding sessions ─────────────────────────────────────────────────────────────────────────


def test_every_bad_scan_is_named_by_default(config):
    people = [f"sub-{number}" for number in range(8)]
    scans = [config.work / "scans" / f"{person}_{which}.nii.gz" for person in people for which in NAMES.values()]
    for path in scans:
        path.write_bytes(b"nothing")
    write_manifest(manifest(config, "sub-good", *people), config.manifest)
    with pytest.raises(VolumeError) as error:
        preprocess(config, progress=False)
    assert all(f"{path}: cannot" in str(error.value) for path in scans)
    assert "16 scans; correct these, or leave their sessions out by cohort.skip_unreadable: true" in str(error.value)
    assert not list(config.volumes.glob("sub-[0-9]*"))


def test_sessions_that_cannot_be_used_are_left_out_by_option(config):
    whole = preprocess(config, progress=False)
    (config.work / "scans" / "sub-other_pet.nii.gz").write_bytes(b"nothing")
    skip = changed(config, cohort={"skip_unreadable": True})
    index = preprocess(skip, progress=False)
    pd.testing.assert_frame_equal(index, whole.iloc[:1])
    assert np.load(config.volumes / "cohort.npy").shape[0] == 1
    (excluded,) = pd.read_csv(config.volumes / "excluded.csv").to_dict("records")
    assert (excluded["person"], excluded["session"], excluded["step"]) == ("sub-other", "ses-1", "unusable")
    assert "sub-other_pet.nii.gz: cannot be read as NIfTI" in excluded["reason"]
    before = {path: path.stat().st_mtime_ns for path in config.volumes.rglob("*")}
    preprocess(skip, progress=False)
    assert {path: path.stat().st_mtime_ns for path in config.volumes.rglob("*")} == before
    assert cohort_flow(skip).tail(2).to_numpy().tolist() == [["scans usable", 1, 1], ["passes QC", 1, 1]]
    (config.work / "scans" / "sub-good_T1w.nii.gz").write_bytes(b"nothing")
    with pytest.raises(VolumeError, match=r"all 2 sessions are left out, the first because: .*sub-good_T1w"):
        preprocess(skip, progress=False)


def test_flagged_sessions_are_left_out_by_option_only(config, monkeypatch):
    monkeypatch.setitem(LIMITS, "suvr_max", (1.1, 1.3))
    spread = preprocess(config, progress=False).set_index("person")["amyloid_suvr_max"]
    monkeypatch.setitem(LIMITS, "suvr_max", (1.1, spread.mean()))  # one of the two is beyond
    high = spread.idxmax()
    index = preprocess(config, progress=False)
    assert index.loc[index["flags"] != "", "person"].tolist() == [high]
    assert pd.read_csv(config.volumes / "excluded.csv").empty
    write_csv(config.work / "flow.csv", pd.DataFrame([["found", 3, 4]], columns=["step", "people", "sessions"]))
    expected = [["found", 3, 4], ["scans usable", 2, 2], ["passes QC", 1, 1]]
    assert cohort_flow(config).to_numpy().tolist() == expected
    strict = changed(config, cohort={"exclude_flagged": True})
    index = preprocess(strict, progress=False)
    assert high not in set(index["person"])
    assert np.load(config.volumes / "cohort.npy").shape[0] == len(index) == 1
    (excluded,) = pd.read_csv(config.volumes / "excluded.csv").to_dict("records")
    assert (excluded["person"], excluded["split"], excluded["step"]) == (high, "train", "flagged")
    assert excluded["reason"] == f"amyloid suvr max {spread.max():.2f}"
    assert cohort_flow(strict).to_numpy().tolist() == expected


# ── formats, and headers at random ────────────────────────────────────────────────────────────────


HEAD = np.random.default_rng(0).random((9, 10, 11), dtype=np.float32) + 0.1
AFFINE = np.diag([4.0, 4, 4, 1])


@pytest.mark.parametrize(("kind", "name", "good"), [
    (nib.Nifti1Image, "a.nii.gz", True), (nib.Nifti1Image, "a.nii.bz2", True), (nib.Nifti2Image, "a.nii", True),
    (nib.Nifti1Pair, "a.img", True), (nib.Nifti1Pair, "a.hdr", True), (nib.MGHImage, "a.mgz", True),
    (nib.AnalyzeImage, "a.img", False), (nib.Spm99AnalyzeImage, "a.img", False), (nib.Spm2AnalyzeImage, "a.hdr", False),
])  # fmt: skip
def test_formats_that_do_not_state_left_and_right_are_refused(tmp_path, kind, name, good):
    image = kind(HEAD, AFFINE)
    nib.save(image, tmp_path / name)
    if good:
        np.testing.assert_array_equal(read_scan(tmp_path / name).data, HEAD)
    else:
        with pytest.raises(VolumeError, match=r"format that may not define which side is left.*convert it from DICOM"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("lost", ["a.img", "a.hdr"])
def test_half_a_pair_and_mgh_without_orientation_are_refused(tmp_path, lost):
    nib.save(nib.Nifti1Pair(HEAD, AFFINE), tmp_path / "a.img")
    (tmp_path / lost).unlink()
    with pytest.raises(VolumeError, match=r"a\.(img|hdr): (no such file|cannot be read)"):
        read_scan(tmp_path / ("a.img" if lost == "a.hdr" else "a.hdr"))
    with pytest.raises(VolumeError, match="no such file"):
        read_scan(tmp_path / "nobody.nii.gz")
    nib.save(nib.MGHImage(HEAD, AFFINE), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = bytes(2)  # goodRASFlag
    (tmp_path / "a.mgh").write_bytes(bytes(content))
    with pytest.raises(VolumeError, match="no orientation"):
        read_scan(tmp_path / "a.mgh")


def test_a_qform_that_rounding_left_a_hair_too_long_is_read(tmp_path):
    """Squares of the quaternion that sum to 1 + 2e-6, as ANTs wrote them, beside a good sform; nibabel refuses it."""
    affine = nib.affines.from_matvec([[-4.0, 0, 0], [0, 0, 4], [0, 4, 0]])
    path = save(tmp_path / "a.nii.gz", HEAD, affine)
    header(quatern_b=0, quatern_c=0.707107, quatern_d=0.707108)(path, None, None)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path).get_qform()
    np.testing.assert_allclose(read_scan(path).affine, affine)
    assert form_difference(nib.load(path)) < 0.01


_FIELDS = {
    "dim": st.lists(st.integers(-3, 30) | st.sampled_from([-32768, 1800, 32767]), min_size=8, max_size=8),
    "pixdim": st.lists(st.floats(width=32), min_size=8, max_size=8),
    "srow_x": st.lists(st.floats(width=32), min_size=4, max_size=4),
    **{f"{form}_code": st.integers(-2, 9) for form in ("sform", "qform")},
    **{f"quatern_{axis}": st.floats(width=32) for axis in "bcd"},
    **{name: st.floats(width=32) for name in ("scl_slope", "scl_inter", "vox_offset", "qoffset_y")},
    "datatype": st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304, 77]),
    **{name: st.integers(0, 255) for name in ("xyzt_units", "dim_info")},
    "bitpix": st.integers(-8, 128), "sizeof_hdr": st.sampled_from([0, 348, 540, -1]), "magic": st.binary(max_size=4),
}  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.dictionaries(st.sampled_from(sorted(_FIELDS)), st.none(), max_size=4).flatmap(
        lambda chosen: st.fixed_dictionaries({name: _FIELDS[name] for name in chosen})
    ),
    end=st.none() | st.integers(-4000, 4000), packed=st.booleans(), frames=st.booleans(),
)  # fmt: skip
def test_a_random_header_is_read_or_refused_in_one_line_with_no_more_memory_than_its_file(
    tmp_path_factory, fields, end, packed, frames
):
    content = bytearray(nib.Nifti1Image(HEAD, AFFINE).to_bytes())
    start = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        start[name] = value
    content[:348] = start.binaryblock
    content = bytes(content[:end] if end and end < 0 else content + bytes(end or 0))
    path = tmp_path_factory.getbasetemp() / ("random.nii.gz" if packed else "random.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        scan, message = read_scan(path, frames=frames), ""
    except VolumeError as error:
        scan, message = None, str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    if scan is None:
        assert str(path) in message
        assert "\n" not in message
    else:
        assert np.isfinite(scan.data).all()
        assert np.isfinite(scan.affine).all()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(flips=st.dictionaries(st.integers(0, 4000), st.integers(1, 255), min_size=1, max_size=6))
def test_flipped_bytes_of_a_compressed_scan_never_end_in_another_error(tmp_path_factory, flips):
    path = tmp_path_factory.getbasetemp() / "flipped.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(HEAD, AFFINE).to_bytes()))
    for place, bits in flips.items():
        content[place % len(content)] ^= bits
    path.write_bytes(bytes(content))
    with suppress(VolumeError):
        read_scan(path)
