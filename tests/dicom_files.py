"""DICOM series as scanners write them, for the tests."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, PositronEmissionTomographyImageStorage, generate_uid

PERSON = {"PatientName": "Doe^Jane", "PatientID": "S0042", "PatientBirthDate": "19500310", "PatientSex": "F"}
ORIENTATION = (0.9986, 0.0523, 0.0, 0.0, 0.0, -1.0)  # sagittal-oblique planes of a coronal stack, unit vectors
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(orientation, spacing, origin, step) -> np.ndarray:
    """Voxels (column, row, slice) → RAS mm, by the definition of DICOM's tags."""
    row, column = np.reshape(orientation, (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2] = np.cross(row, column) * step
    affine[:3, 3] = origin
    return LPS @ affine


def _header(uid: str, modality: str, tags: dict) -> FileDataset:
    meta = FileMetaDataset()
    storage = MRImageStorage if modality == "MR" else PositronEmissionTomographyImageStorage
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.Modality = uid, modality
    shared = PERSON | {"StudyInstanceUID": uid[:-4] + ".1", "FrameOfReferenceUID": uid[:-4] + ".2",
                       "Manufacturer": "SIEMENS", "ManufacturerModelName": "Prisma_fit", "PatientPosition": "HFS",
                       "StudyTime": "101500.000000", "SeriesTime": "102000.000000", "StudyID": "1"}  # fmt: skip
    for name, value in (shared | tags).items():
        setattr(header, name, value)
    return header


def _save(header: FileDataset, plane: np.ndarray, path: Path) -> None:
    """The plane is indexed (column, row)."""
    pixels = np.ascontiguousarray(plane.T)
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def write_t1(folder: Path, data: np.ndarray, *, day: str = "20210310", number: int = 3, description: str = "MPRAGE_SAG",
             spacing=(1.2, 1.3), step: float = 1.5, left_out=(), **tags) -> np.ndarray:  # fmt: skip
    """A T1 (columns, rows, slices), whole numbers; returns its affine."""
    row, column = (np.array(v) / np.linalg.norm(v) for v in np.reshape(ORIENTATION, (2, 3)))
    normal, origin, uid = np.cross(row, column), np.array([-30.5, 42.0, 61.25]), generate_uid()
    for index in range(data.shape[2]):
        if index in left_out:
            continue
        header = _header(uid, "MR", {
            "StudyDate": day, "SeriesDate": day, "AcquisitionDate": day, "AcquisitionTime": "102105.500000",
            "ContentDate": day, "ContentTime": "102105.500000", "SeriesNumber": number, "InstanceNumber": index + 1,
            "SeriesDescription": description, "ProtocolName": description, "MRAcquisitionType": "3D",
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"], "ScanningSequence": "GR", "SequenceVariant": "SK",
            "SequenceName": "*tfl3d1_16ns",
            "MagneticFieldStrength": 3, "RepetitionTime": 2300, "EchoTime": 2.98, "InversionTime": 900, "FlipAngle": 9,
            "SliceThickness": step, "PixelSpacing": [f"{mm:g}" for mm in spacing], "PatientAge": "071Y",
            "ImageOrientationPatient": [f"{v:.10f}" for v in (*row, *column)],
            "ImagePositionPatient": [f"{v:.8f}" for v in origin + index * step * normal], "AcquisitionNumber": 1,
        } | tags)  # fmt: skip
        _save(header, data[:, :, index], folder / f"IM{index:04d}")
    return affine_of((*row, *column), spacing, origin, step)


def write_pet(
    folder: Path, data: np.ndarray, *, day: str = "20210320", number: int = 7, tracer: str = "AV-45 Florbetapir",
    description: str = "PET Brain AC", slopes=None, minutes: float = 5.0, left_out=(), injected: str = "103000.00",
    **tags,
) -> np.ndarray:  # fmt: skip
    """A PET (columns, rows, slices, frames) in Bq/mL, 50 minutes after ``injected``, from 11:20 on; its affine."""
    orientation, spacing, step = (1.0, 0, 0, 0, 1, 0), (2.5, 2.5), 3.0
    origin, uid, first = np.array([-25.0, -30, -40]), generate_uid(), datetime(2021, 3, 20, 11, 20)
    slices, frames = data.shape[2:]
    slopes = np.ones((slices, frames)) if slopes is None else slopes
    for frame in range(frames):
        seconds = 60 * minutes * frame
        start = f"{first + timedelta(seconds=seconds):%H%M%S}.000000"
        for index in range(slices):
            if (index, frame) in left_out:
                continue
            radio = Dataset()
            radio.Radiopharmaceutical, radio.RadionuclideTotalDose = tracer, 370e6
            radio.RadionuclideHalfLife, radio.RadionuclidePositronFraction = 6586.2, 0.97
            if injected:
                radio.RadiopharmaceuticalStartTime = injected
            nuclide = Dataset()
            nuclide.CodeValue, nuclide.CodingSchemeDesignator, nuclide.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
            radio.RadionuclideCodeSequence = Sequence([nuclide])
            position = origin + index * step * np.array([0, 0, 1])
            header = _header(uid, "PT", {
                "StudyDate": day, "SeriesDate": day, "AcquisitionDate": day, "AcquisitionTime": start,
                "ContentDate": day, "ContentTime": start, "SeriesTime": "112000.000000", "SeriesNumber": number,
                "InstanceNumber": frame * slices + index + 1, "ImageIndex": frame * slices + index + 1,
                "SeriesDescription": description, "ProtocolName": description, "ImageType": ["ORIGINAL", "PRIMARY"],
                "Units": "BQML", "CountsSource": "EMISSION", "DecayCorrection": "START", "DecayFactor": 1.02,
                "SeriesType": ["DYNAMIC" if frames > 1 else "STATIC", "IMAGE"],
                "CorrectedImage": ["DECY", "ATTN", "SCAT", "DTIM", "NORM"], "ScatterFractionFactor": 0.3,
                "NumberOfSlices": slices, "NumberOfTimeSlices": frames, "ActualFrameDuration": int(60000 * minutes),
                "FrameReferenceTime": 1000 * (seconds + 30 * minutes), "AcquisitionNumber": frame + 1,
                "ReconstructionMethod": "OSEM3D 4i21s", "ConvolutionKernel": "XYZ Gauss2.00", "PatientAge": "071Y",
                "AttenuationCorrectionMethod": "measured, CT", "SliceThickness": step, "PixelSpacing": list(spacing),
                "ImageOrientationPatient": list(orientation), "ImagePositionPatient": position.tolist(),
                "RescaleIntercept": 0, "RescaleSlope": float(slopes[index, frame]),
                "RadiopharmaceuticalInformationSequence": Sequence([radio]),
            } | tags)  # fmt: skip
            plane = np.rint(data[:, :, index, frame] / slopes[index, frame])
            _save(header, plane, folder / f"PT{frame:02d}_{index:03d}.dcm")
    return affine_of(orientation, spacing, origin, step)
