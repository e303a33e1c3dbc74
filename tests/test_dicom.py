"""DICOM series → BIDS: geometry, values, frames and times are those that the series were written from; clear errors."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("pypet2bids")
from dicom_files import PERSON, write_pet, write_t1
from pydicom import Dataset, dcmread

from resdm_suite.apps.cli import main
from resdm_suite.cohorts.readers import dicom
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.cohorts.readers.dicom import T1W, DicomError, Series, convert_people, convert_t1w, read_series
from resdm_suite.preprocessing.frames import average_frames
from resdm_suite.preprocessing.scans import read_scan
from resdm_suite.profiles import CohortConfig, Config

RNG = np.random.default_rng(0)
T1 = RNG.integers(0, 1500, (24, 28, 62))
PET = RNG.integers(10, 30_000, (20, 22, 12, 4)).astype(float)
SLOPES = np.linspace(0.5, 2, 48).reshape(12, 4)


def placed(image, affine, shape):
    """An image's values at the voxels of another grid that has the same points."""
    to_image = np.linalg.inv(image.affine) @ affine
    points = np.stack(np.meshgrid(*map(np.arange, shape[:3]), indexing="ij"), -1)
    indices = points @ to_image[:3, :3].T + to_image[:3, 3]
    np.testing.assert_allclose(indices, np.rint(indices), atol=2e-3)
    return image.get_fdata()[tuple(np.moveaxis(np.rint(indices).astype(int), -1, 0))]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two people as an archive has them: a T1 and a localiser, a dynamic amyloid PET, a PET without correction."""
    root = tmp_path_factory.mktemp("archive")
    first = root / "scans" / "P-001"
    affines = {"t1w": write_t1(first / "20210310" / "series 3", T1)}
    write_t1(first / "20210310" / "series 1", T1[:, :, :3], number=1, description="localizer")
    affines["pet"] = write_pet(first / "20210320" / "7", PET, slopes=SLOPES)
    write_pet(first / "20210320" / "8", PET[..., :1], number=8, CorrectedImage=["DECY"], description="PET Brain NAC")
    (first / "DICOMDIR.txt").write_text("no DICOM")
    other = {"PatientID": "S0043", "PatientSex": "M", "PatientAge": "", "PatientBirthDate": "19510310"}
    write_t1(root / "scans" / "P-002", T1, **other)
    write_pet(root / "scans" / "P-002" / "pet", PET[..., :1], day="20210310", tracer="Solution",
              description="AV1451 80-100", minutes=20, **other)  # fmt: skip
    said = convert_people(root / "scans", root / "bids", progress=False)
    return root, affines, said


def test_geometry_and_values_are_those_of_the_series(archive):
    root, affines, _ = archive
    t1w = nib.load(root / "bids/sub-P001/ses-1/anat/sub-P001_ses-1_T1w.nii.gz")
    np.testing.assert_array_equal(placed(t1w, affines["t1w"], T1.shape), T1)
    pet = nib.load(root / "bids/sub-P001/ses-2/pet/sub-P001_ses-2_trc-18FAV45_pet.nii.gz")
    expected = np.rint(PET / SLOPES) * SLOPES  # as 16 bits with a slope for each image
    np.testing.assert_allclose(placed(pet, affines["pet"], PET.shape), expected, rtol=1e-6)


def test_units_frames_and_times_are_those_of_the_series(archive):
    """The scan began 50 minutes after the injection, which pypet2bids does not write."""
    path = archive[0] / "bids/sub-P001/ses-2/pet/sub-P001_ses-2_trc-18FAV45_pet.nii.gz"
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (sidecar["Units"], sidecar["TracerName"]) == ("Bq/mL", "AV-45 Florbetapir")
    assert (sidecar["FrameTimesStart"], sidecar["FrameDuration"]) == ([0, 300, 600, 900], [300] * 4)
    assert (sidecar["TimeZero"], sidecar["ScanStart"], sidecar["InjectionStart"]) == ("11:20:00", 0, -3000)
    _, info = average_frames(nib.load(path).get_fdata(), path, "18FAV45")
    assert info["minutes_after_injection"] == [50, 70]
    assert read_scan(path, frames=True, tracer="18FAV45").data.shape == PET.shape[:3]


def sessions(folder):
    return build_manifest(folder, Config(profile="t", cohort=CohortConfig(kind="other"), root=folder.parent))


def test_people_become_sessions_of_the_reader(archive):
    root, _, said = archive
    frame, _, _, notes = sessions(root / "bids")
    assert frame[["person", "session", "age", "sex"]].to_numpy().tolist() == [
        ["sub-P001", "ses-1", 71, "F"], ["sub-P002", "ses-1", 70, "M"],
    ]  # fmt: skip
    assert frame[["amyloid_tracer", "tau_tracer"]].to_numpy().tolist() == [["18FAV45", ""], ["", "18FAV1451"]]
    assert frame["amyloid_days"][0] == 10
    assert any("rec-nac_pet.nii.gz has no attenuation correction" in note for note in notes)
    assert "P-001: not converted: MR 1 'localizer', 3 images" in said
    assert "5 images of 2 people" in said


def test_no_name_and_no_date_is_written(archive):
    for path in (archive[0] / "bids").rglob("*.*"):
        if path.suffix in (".tsv", ".json"):
            text = re.sub(r'"SeriesDigest": "\w+"', "", path.read_text())  # random digits
            assert not [word for word in (PERSON["PatientName"][:3], "S0042", "1950", "2021") if word in text], path


def test_a_second_call_converts_nothing_again(archive, monkeypatch):
    monkeypatch.setattr("resdm_suite.cohorts.readers.dicom.convert_series", None)
    assert convert_people(archive[0] / "scans", archive[0] / "bids", progress=False) == archive[2]


def test_scans_that_move_a_session_are_not_mixed_with_older_ones(tmp_path):
    write_t1(tmp_path / "in" / "a" / "new", T1)
    convert_people(tmp_path / "in", tmp_path / "out", progress=False)
    write_t1(tmp_path / "in" / "a" / "old", T1[::-1], day="20190310", number=4)
    with pytest.raises(DicomError, match=r"ses-1_T1w\.nii\.gz is of another series, since scans were added or remov"):
        convert_people(tmp_path / "in", tmp_path / "out", progress=False)


def test_people_and_columns_that_are_there_stay(tmp_path):
    write_t1(tmp_path / "first" / "b", T1)
    convert_people(tmp_path / "first", tmp_path / "out", progress=False)
    tables = {
        "participants": ("participant_id\tsex\teducation\nx\tM\t9\nsub-b\tn/a\t16\n",
                         "sub-b\tF\t16\nsub-c\tF\tn/a\nsub-x\tM\t9\n"),
        "sub-b/sub-b_sessions": ("session_id\tage\tmmse\nses-1\t70.5\t29\n", "ses-1\t1900-01-01T00:00:00\t70.5\t29\n"),
        "sub-b/ses-1/sub-b_ses-1_scans": ("filename\tnote\nanat/sub-b_ses-1_T1w.nii.gz\tgood\n",
                                          "anat/sub-b_ses-1_T1w.nii.gz\t1900-01-01T00:00:00\tgood\n"),
    }  # fmt: skip
    for name, (text, _) in tables.items():
        (tmp_path / "out" / f"{name}.tsv").write_text(text)
    shutil.copytree(tmp_path / "first" / "b", tmp_path / "first" / "c")
    convert_people(tmp_path / "first", tmp_path / "out", progress=False)
    for name, (_, rows) in tables.items():
        assert (tmp_path / "out" / f"{name}.tsv").read_text().partition("\n")[2] == rows


def test_scans_of_a_person_in_two_folders_are_not_mixed(tmp_path):
    """A PET alone would be put on the day of the T1 that another folder held."""
    write_t1(tmp_path / "in" / "a", T1)
    convert_people(tmp_path / "in", tmp_path / "out", progress=False)
    before = {path: path.read_bytes() for path in tmp_path.glob("out/sub-a/**/*.*")}
    write_pet(tmp_path / "more" / "a", PET[..., :1], day="20210910")
    with pytest.raises(
        DicomError, match=r"more/a: lacks the series of .*ses-1_T1w\.nii\.gz; put all scans of this per"
    ):
        convert_people(tmp_path / "more", tmp_path / "out", progress=False)
    assert {path: path.read_bytes() for path in tmp_path.glob("out/sub-a/**/*.*")} == before


def test_two_runs_into_one_folder_take_turns(tmp_path, monkeypatch):
    """Both read ``participants.tsv`` before the other wrote it, and the people of one were lost."""
    for name in "ab":
        (tmp_path / name / name).mkdir(parents=True)
    both = Barrier(2, timeout=1)

    def convert(_, out, *others):
        with suppress(BrokenBarrierError):
            both.wait()
        return {"participant_id": out.name, "sex": "F"}

    monkeypatch.setattr(dicom, "_convert_person", convert)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: convert_people(tmp_path / name, tmp_path / "out", progress=False), "ab"))
    assert (tmp_path / "out" / "participants.tsv").read_text() == "participant_id\tsex\nsub-a\tF\nsub-b\tF\n"


@pytest.mark.parametrize("name", ["dataset_description.json", "participants.tsv"])
def test_a_data_set_of_another_origin_is_refused(tmp_path, name):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(DicomError, match="holds a data set that was not converted from DICOM by resdm"):
        convert_people(tmp_path / "in", tmp_path, progress=False)
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(("injected", "seconds"), [
    ("103000.00", -3000), ("1030", -3000), ("10", -4800), ("10:30", None), ("202103201015+0000", -3900), ("", None),
    (None, None),
])  # fmt: skip
def test_forms_of_the_time_of_injection(injected, seconds):
    header, stated = Dataset(), Dataset()
    header.AcquisitionDate, header.AcquisitionTime = "20210320", "1120"
    if injected is not None:  # LO: pydicom warns of other forms of a time
        stated.add_new("RadiopharmaceuticalStartTime", "LO", injected)
    header.RadiopharmaceuticalInformationSequence = [stated]
    assert dicom._with_injection({}, Series(None, [header])).get("InjectionStart") == seconds


@pytest.mark.parametrize(("tracer", "description", "name"), [
    ("FDG -- fluorodeoxyglucose", "BRAIN AC 3D FBP", "_rec-nac"), ("Solution", "FBB FBP", "_trc-18FFBB_rec-nac"),
    ("FBP", "PET", "_trc-18FAV45_rec-nac"), ("Solution", "AV45 and AV1451", "_rec-nac"),
])  # fmt: skip
def test_filtered_back_projection_is_no_tracer(tracer, description, name):
    header, stated = Dataset(), Dataset()
    header.Modality, header.SeriesDescription, header.CorrectedImage = "PT", description, ["DECY"]
    stated.Radiopharmaceutical = tracer
    header.RadiopharmaceuticalInformationSequence = [stated]
    assert Series(None, [header]).bids_name() == ("pet", name, "pet")


def test_a_deleted_image_is_made_again_and_any_series_may_state_age_and_sex(tmp_path):
    write_t1(tmp_path / "in" / "a" / "t1", T1, PatientAge="", PatientBirthDate="", PatientSex="")
    write_pet(tmp_path / "in" / "a" / "pet", PET[..., :1], day="20210310")
    convert_people(tmp_path / "in", tmp_path / "out", progress=False)
    image = tmp_path / "out/sub-a/ses-1/anat/sub-a_ses-1_T1w.nii.gz"
    image.unlink()
    convert_people(tmp_path / "in", tmp_path / "out", progress=False)
    assert image.is_file()
    assert sessions(tmp_path / "out").manifest[["age", "sex"]].to_numpy().tolist() == [[71, "F"]]


def test_a_pet_without_a_date_is_paired_with_no_t1(tmp_path):
    write_t1(tmp_path / "in" / "a" / "t1", T1)
    write_pet(tmp_path / "in" / "a" / "pet", PET[..., :1])
    write_pet(tmp_path / "in" / "a" / "old", PET[..., :1], day="", number=8)
    said = convert_people(tmp_path / "in", tmp_path / "out", progress=False)
    assert "PT 8 'PET Brain AC' has no date; it is put in a session of its own, ses-3, without day and age" in said
    table = pd.read_csv(tmp_path / "out/sub-a/sub-a_sessions.tsv", sep="\t").set_index("session_id")
    assert table.loc["ses-3"].isna().all()
    assert table["acq_time"].tolist()[:2] == ["1900-01-01T00:00:00", "1900-01-11T00:00:00"]
    assert sessions(tmp_path / "out").manifest[["session", "amyloid_days"]].to_numpy().tolist() == [["ses-1", 10]]


@pytest.mark.parametrize(("words", "plain"), [
    ("t1_mprage_sag", True), ("MPRAGE_GD", False), ("T1 +C", False), ("t1_km_tra", False), ("T1_CE", False),
    ("t1 gdansk ceremony", True), ("T1_SPGR_POST", False),
])  # fmt: skip
def test_a_t1_after_contrast_agent_is_not_taken(words, plain):
    header = Dataset()
    header.Modality, header.SeriesDescription, header.NumberOfFrames = "MR", words, 100
    assert Series(None, [header]).is_t1w(re.compile(T1W, re.IGNORECASE)) == plain


# ── one T1 ────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_one_t1(tmp_path):
    affine = write_t1(tmp_path / "sub-07" / "dicom", T1)
    path = convert_t1w(tmp_path / "sub-07" / "dicom", tmp_path / "raw")
    assert path == tmp_path / "raw" / "sub-07" / "anat" / "sub-07_T1w.nii.gz"
    np.testing.assert_array_equal(placed(nib.load(path), affine, T1.shape), T1)
    assert convert_t1w(tmp_path / "sub-07" / "dicom", tmp_path / "raw") == path
    write_t1(tmp_path / "sub-07" / "other", T1[::-1])
    with pytest.raises(DicomError, match=r"sub-07_T1w\.nii\.gz is of another MRI; give another --out"):
        convert_t1w(tmp_path / "sub-07" / "other", tmp_path / "raw")


def without_position(folder, _):
    """A series of which one image, not the first, states no position."""
    header = dcmread(folder / "IM0030")
    del header.ImagePositionPatient
    header.save_as(folder / "IM0030")


@pytest.mark.parametrize(("write", "message"), [
    (lambda folder: (write_t1(folder / "a", T1), write_pet(folder / "b", PET[..., :1])),
     r"2 series, expected one: MR 3 'MPRAGE_SAG' \(62 images\); PT 7 'PET Brain AC' \(12 images\)"),
    (lambda folder: (write_t1(folder / "a", T1), write_t1(folder / "b", T1, number=4)), "2 series, expected .*MR 4"),
    (lambda folder: write_pet(folder, PET[..., :1]), r"PT 7 'PET Brain AC' is no MRI"),
    (lambda folder: write_t1(folder, T1, left_out=(30, 31)), r"MR 3 'MPRAGE_SAG': slices are missing after position"),
    (lambda folder: write_t1(folder, T1[:, :, :1]), "1 images of one position"),
    (lambda folder: without_position(folder, write_t1(folder, T1)), "an image without position or orientation"),
    (lambda folder: (write_t1(folder / "a", T1), write_t1(folder / "b", T1, PatientID="S1")), "more than one Patient"),
    (lambda folder: folder.mkdir(), "no DICOM image"),
])  # fmt: skip
def test_other_folders_are_refused(tmp_path, write, message):
    write(tmp_path / "t1")
    with pytest.raises(DicomError, match=message):
        convert_t1w(tmp_path / "t1", tmp_path / "raw")
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize(("left_out", "message"), [
    ([(5, 2)], "1 of 4 frames are missing at position"),
    ([(5, frame) for frame in range(4)], "slices are missing after position"),
    ([(11, frame) for frame in range(4)], "11 slices, its headers state 12"),
])  # fmt: skip
def test_one_incomplete_series_stops_no_other_person(tmp_path, capsys, left_out, message):
    write_pet(tmp_path / "in" / "a", PET, left_out=left_out)
    write_t1(tmp_path / "in" / "b", T1)
    assert main(["dicom", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "1 of 2 people are converted" in said
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["sub-b_ses-1_T1w.nii.gz"]
    assert pd.read_csv(tmp_path / "out" / "participants.tsv", sep="\t")["participant_id"].tolist() == ["sub-b"]


def test_missing_tools_are_named(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pypet2bids" else real(name))
    with pytest.raises(DicomError, match=r"needs pypet2bids: install them by `pip install 'resdm\[dicom\]'`"):
        read_series(tmp_path)
    shutil.rmtree(tmp_path)
