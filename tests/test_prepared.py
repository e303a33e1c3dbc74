"""Outputs of fMRIPrep and PETPrep: their spaces and transforms are used, and nothing is registered again.

Names and metadata are those of the tools: fMRIPrep 20.2 and PETPrep 0.0.3, as in the BIDS examples.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813 - its own users call it so

from resdm_suite.anatomy import brain_points
from resdm_suite.cohorts.manifest import ManifestError, read_manifest, write_manifest
from resdm_suite.cohorts.phantom import write_phantoms
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.cohorts.tables import read_sidecar
from resdm_suite.preprocessing import volumes
from resdm_suite.preprocessing.qc import session_quality, sessions
from resdm_suite.preprocessing.resampling import displacement
from resdm_suite.preprocessing.scans import VolumeError, read_transform
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig
from resdm_suite.reporting.qc import _measures

RAS = np.diag([-1.0, -1.0, 1.0])
MNI = "MNI152NLin2009cAsym"
FLOAT = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_float_3_3\n"


def itk(matrix):
    """A matrix in RAS mm as ITK's affine transform."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((RAS @ matrix[:3, :3] @ RAS).ravel().tolist())
    transform.SetTranslation((RAS @ matrix[:3, 3]).tolist())
    return transform


def warp(amplitude):
    """A displacement field of ITK over the MNI brain, of waves of 60 mm."""
    size, origin = (24, 28, 24), (-92.0, -90.0, -85.0)
    points = np.moveaxis(8.0 * np.indices(size), 0, -1) + origin
    field = amplitude * np.sin(2 * np.pi * points[..., [1, 2, 0]] / 60)
    image = sitk.GetImageFromArray(field.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing((8.0, 8.0, 8.0))
    image.SetOrigin(origin)
    return sitk.DisplacementFieldTransform(image)


def write_itk(path, matrix, amplitude=0.0):
    """As the tools do: ``.h5`` with a warp after the affine part, ``.txt`` in single precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
        sitk.WriteTransform(sitk.CompositeTransform([itk(matrix), warp(amplitude)]), str(path))
    else:
        numbers = " ".join(f"{value:.6g}" for value in itk(matrix).GetParameters())
        path.write_text(f"{FLOAT}Parameters: {numbers}\nFixedParameters: 0 0 0\n")
    return path


def describe(root, tool=""):
    root.mkdir(parents=True, exist_ok=True)
    content = {"Name": "study", "BIDSVersion": "1.9.0"}
    if tool:
        content |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": tool, "Version": "0.0.3"}]}
        content |= {"DatasetLinks": {"raw": "/data", "templateflow": "/templateflow"}}
    (root / "dataset_description.json").write_text(json.dumps(content))
    return root


def touch(root, *names):
    for name in names:
        person, *rest = name.split("_")
        kind = "anat" if name.endswith("T1w.nii.gz") or ("xfm" in name and "petref" not in name) else "pet"
        path = root.joinpath(person, *(part for part in rest if part.startswith("ses-")), kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def config(tmp_path):
    return Config(profile="tiny", cohort=CohortConfig(kind="other"), root=tmp_path)


@pytest.fixture
def study(tmp_path):
    """A raw data set of one person, T1w and amyloid PET in ses-a, tau PET 40 days later, and its derivatives."""
    raw = describe(tmp_path / "raw")
    (raw / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t71\tF\n")
    (raw / "sub-01").mkdir()
    (raw / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-a\t2020-01-01\nses-b\t2020-02-10\n")
    touch(
        raw, "sub-01_ses-a_T1w.nii.gz", "sub-01_ses-a_trc-18FAV45_pet.nii.gz", "sub-01_ses-b_trc-18FAV1451_pet.nii.gz"
    )

    def derivatives(tool, *names):
        root = describe(raw / "derivatives" / tool.lower(), tool)
        touch(root, *names)
        return root

    return derivatives


ANATOMY = (
    "sub-01_desc-preproc_T1w.nii.gz", f"sub-01_space-{MNI}_res-2_desc-preproc_T1w.nii.gz",
    f"sub-01_from-T1w_to-{MNI}_mode-image_xfm.h5", f"sub-01_from-{MNI}_to-T1w_mode-image_xfm.h5",
    "sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5", "sub-01_from-T1w_to-fsnative_mode-image_xfm.txt",
)  # fmt: skip


def name_of(cell):
    return cell.rpartition("/")[2]


# ── the reader ────────────────────────────────────────────────────────────────────────────────────


def test_petprep_in_the_space_of_the_t1w(study, config):
    """The T1w of all sessions belongs to the session of the raw T1w, and PET of another keeps its transform to it."""
    root = study("PETPrep", *ANATOMY, "sub-01_ses-a_trc-18FAV45_space-T1w_desc-preproc_pet.nii.gz",
                 "sub-01_ses-a_trc-18FAV45_space-T1w_pvc-GTM_desc-preproc_pet.nii.gz",
                 "sub-01_ses-b_trc-18FAV1451_desc-preproc_pet.nii.gz",
                 "sub-01_ses-b_trc-18FAV1451_from-orig_to-petref_mode-image_xfm.txt",
                 "sub-01_ses-b_trc-18FAV1451_from-petref_to-T1w_mode-image_xfm.txt")  # fmt: skip
    frame, _, _, notes = build_manifest(root, config)
    row = frame.iloc[0]
    assert (len(frame), row["session"], row["age"], row["space"], row["tau_days"]) == (1, "ses-a", 71, "", 40)
    assert name_of(row["t1w"]) == ANATOMY[0]
    assert name_of(row["t1w_transform"]) == ANATOMY[2]
    assert row["amyloid_transform"] == "identity"
    assert name_of(row["tau_transform"]) == "sub-01_ses-b_trc-18FAV1451_from-petref_to-T1w_mode-image_xfm.txt"
    assert any("pvc-GTM_desc-preproc_pet.nii.gz is corrected for partial volume" in note for note in notes)
    stored = read_manifest(write_manifest(frame, config.manifest))
    pd.testing.assert_frame_equal(stored, frame.reset_index(drop=True), check_dtype=False)


def test_petprep_in_mni_space_alone(study, config):
    """PET in MNI152 alone: the T1w in that space is used, and the manifest records which space."""
    root = study("PETPrep", *ANATOMY, f"sub-01_ses-a_trc-18FAV45_space-{MNI}_desc-preproc_pet.nii.gz")
    row = build_manifest(root, config).manifest.iloc[0]
    assert (row["space"], name_of(row["t1w"])) == (MNI, ANATOMY[1])
    assert not any(row[f"{what}_transform"] for what in ("t1w", "amyloid", "tau"))


def test_fmriprep_with_raw_pet(study, config):
    """The PET is the raw one, to be registered to the prepared T1w."""
    row = build_manifest(study("fMRIPrep", *ANATOMY), config).manifest.iloc[0]
    assert name_of(row["t1w"]) == ANATOMY[0]
    assert name_of(row["t1w_transform"]) == ANATOMY[2]
    assert row["amyloid"].endswith("raw/sub-01/ses-a/pet/sub-01_ses-a_trc-18FAV45_pet.nii.gz")
    assert row["tau"].endswith("sub-01_ses-b_trc-18FAV1451_pet.nii.gz")
    assert row[["amyloid_transform", "tau_transform"]].tolist() == ["", ""]


def test_the_raw_data_set_may_be_elsewhere(study, config, tmp_path):
    root = study("fMRIPrep", *ANATOMY).rename(tmp_path / "outputs")
    with pytest.raises(ManifestError, match="no session can be used"):
        build_manifest(root, config)
    cohort = dataclasses.replace(config.cohort, tables=str(tmp_path / "raw"))
    assert len(build_manifest(root, dataclasses.replace(config, cohort=cohort)).manifest) == 1


def test_what_a_derivative_does_not_state_is_that_of_its_raw_source(study):
    """Newer PETPrep writes the frames and Units alone."""
    root = study("PETPrep", "sub-01_ses-a_space-T1w_desc-preproc_pet.nii.gz")
    pet = root / "sub-01/ses-a/pet/sub-01_ses-a_space-T1w_desc-preproc_pet.nii.gz"
    source = "sub-01/ses-a/pet/sub-01_ses-a_trc-18FAV45_pet"
    raw = {"TracerName": "AV45", "InjectionStart": -3000, "FrameTimesStart": [0], "FrameDuration": [1200]}
    (root.parents[1] / f"{source}.json").write_text(json.dumps(raw))
    xfm = "bids::sub-01/ses-a/pet/sub-01_ses-a_from-petref_to-T1w_mode-image_xfm.txt"
    stated = {"FrameTimesStart": [0, 600], "FrameDuration": [600, 600], "Sources": [f"bids:raw:{source}.nii.gz", xfm]}
    pet.with_name(pet.name.replace(".nii.gz", ".json")).write_text(json.dumps(stated))
    assert read_sidecar(pet) == raw | stated


# ── preprocessing ─────────────────────────────────────────────────────────────────────────────────


def test_a_warp_is_replaced_by_its_affine_part(tmp_path):
    """Waves of 2 mm have a root mean square of √3 · 2 / √2 mm over the brain, and move its affine part little."""
    matrix = np.array([[1.05, 0.1, 0, 3], [-0.1, 0.95, 0.05, -12], [0, 0, 1.1, 20], [0, 0, 0, 1]])
    found, left_out = read_transform(write_itk(tmp_path / "a.h5", matrix, 2.0), brain_points())
    assert left_out == pytest.approx(2 * np.sqrt(3 / 2), rel=0.15)
    assert displacement(found, matrix, brain_points()).max() < 1.0
    found, left_out = read_transform(write_itk(tmp_path / "a.txt", matrix), brain_points())
    assert left_out < 1e-3
    np.testing.assert_allclose(found, matrix, atol=2e-3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Phantoms, and the manifest of PETPrep's outputs of them with the true transforms."""
    folder = tmp_path_factory.mktemp("prepared")
    phantom = PhantomConfig(people=2, anatomy_mm=4.0, t1_voxel_mm=(3.4, 3.4, 3.6), pet_voxel_mm=(4.0, 4.0, 4.2),
                            single_pet=0.0, repeat_visits=0.0)  # fmt: skip
    settings = PreprocessConfig(grid=GridConfig((32, 32, 32), 6.0), registration_mm=5.0)
    config = Config(profile="tiny", cohort=CohortConfig(phantom=phantom), preprocess=settings, root=folder)
    raw = write_phantoms(config, progress=False)
    root = describe(raw / "derivatives" / "petprep", "PETPrep")
    for truth in (config.work / "truth").glob("sub-*.json"):
        person, (visit,) = truth.stem, json.loads(truth.read_text())["sessions"]
        true = {what: {key: np.linalg.inv(scan[key]) for key in scan if "_to_" in key}
                for what, scan in visit["scans"].items()}  # fmt: skip
        for path in (raw / person / visit["session"]).glob("*/*.nii.gz"):
            start, _, kind = path.name.removesuffix(".nii.gz").rpartition("_")
            place = root / path.parent.relative_to(raw)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{start}_desc-preproc_{kind}.nii.gz").hardlink_to(path)
            if kind == "T1w":
                write_itk(place / f"{start}_from-T1w_to-{MNI}_mode-image_xfm.h5", true["t1w"]["world_to_mni"], 1.0)
            else:
                t1_to_pet = true["tau" if "AV1451" in start else "amyloid"]["pet_to_t1"]
                write_itk(place / f"{start}_from-petref_to-T1w_mode-image_xfm.txt", t1_to_pet)
    return config, build_manifest(root, config).manifest.assign(split="train")


def test_given_transforms_replace_registration(prepared, tmp_path, monkeypatch):
    """Their errors are those of the affine part, quality control runs and states it, and a second call does nothing."""
    config, frame = prepared
    config = dataclasses.replace(config, root=tmp_path)
    (tmp_path / "work/tiny").mkdir(parents=True)
    (tmp_path / "work/tiny/truth").symlink_to(prepared[0].work / "truth")
    write_manifest(frame, config.manifest)

    def refuse(*_):
        raise AssertionError("registered again")

    for name in ("register_affine", "register_rigid"):
        monkeypatch.setattr(f"resdm_suite.preprocessing.registration.{name}", refuse)
    volumes.preprocess(config, progress=False)
    for session in sessions(config):
        line = session_quality(session)
        assert line["t1w_error_mm"] < 0.5
        assert line["amyloid_error_mm"] < 0.01
        assert line["tau_error_mm"] < 0.01
        assert line["t1_correlation"] > 0.85
        stated, amyloid, tau = line["registration"].split("; ")
        file = f"{session.name}_from-T1w_to-{MNI}_mode-image_xfm.h5"
        assert re.fullmatch(rf"t1w: given transform {file}, its affine part \(1\.[12] mm left out\)", stated)
        assert amyloid.startswith("amyloid: given transform ")
        assert tau == f"tau: given transform {session.name}_trc-18FAV1451_from-petref_to-T1w_mode-image_xfm.txt"
        assert line["registration"] in dict(map(tuple, _measures(line | {"flags": ""})))["registration"]
    record = volumes.record_path(config, frame.iloc[0].to_dict())
    before = record.stat().st_mtime_ns
    volumes.preprocess(config, progress=False)
    assert record.stat().st_mtime_ns == before


@pytest.mark.parametrize(("content", "message"), [
    ("no transform", r"_xfm\.txt: no ITK transform of 3D points .*leave its column empty to register"),
    (FLOAT + "Parameters: -1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n", "maps a brain to its mirror image"),
    (FLOAT + "Parameters: 1 0 0 0 1 0 0 0 1 0 900 0\nFixedParameters: 0 0 0\n",
     "a transform leads there, but it does not fit"),
])  # fmt: skip
def test_transforms_that_cannot_be_right_are_named(prepared, tmp_path, content, message):
    config, frame = dataclasses.replace(prepared[0], root=tmp_path), prepared[1].iloc[[0]]
    path = tmp_path / "sub-01_xfm.txt"
    path.write_text(content)
    write_manifest(frame.assign(t1w_transform=str(path)), config.manifest)
    with pytest.raises(VolumeError, match=message):
        volumes.preprocess(config, progress=False)


def test_a_missing_transform_is_named(prepared, tmp_path):
    path = write_manifest(prepared[1].assign(t1w_transform="nowhere.h5"), tmp_path / "manifest.csv")
    with pytest.raises(ManifestError, match=r"row 2 .*, t1w_transform: found .*nowhere.h5'"):
        read_manifest(path)
