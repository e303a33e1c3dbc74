"""Folders of DICOM series to a BIDS data set, for the reader of BIDS (`cohorts.readers.bids`).

MRI is converted by dcm2niix and PET by pypet2bids, which keeps units, frames and times in the sidecar (extra ``dicom``
of the package). Two things are done here. Slices and frames are counted first: of a series with a gap dcm2niix makes an
image of wrong geometry. And the time of injection is taken from the DICOM headers: pypet2bids writes that it was the
start of the scan.

No name, birth date or date of a scan is written. Days count from a person's first scan, which is put on 1900-01-01.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from resdm import __version__
from resdm.io import atomic, sha256, stored_json, write_csv, write_json, write_text
from resdm_suite.cohorts.readers.bids import tracer_labels
from resdm_suite.cohorts.tables import read_by_key
from resdm_suite.paths import DESCRIPTION, sidecar_path, tools_of, visible
from resdm_suite.records import locked

T1W = "mp-?rage|spgr|bravo|t1|tfe"
"""Descriptions of a T1-weighted series, a regular expression."""

_NO_T1W = re.compile(
    r"flair|t2|loc|scout|survey|calib|b1|dwi|dti|swi|map|post|gad|contrast|(?<![a-z0-9])(gd|km|ce)(?![a-z0-9])"
    r"|\+ ?c(?![a-z0-9])",
    re.IGNORECASE,
)
_LEAST_SLICES = 60  # of a T1w of the whole head; a localiser has fewer
_DAY = 86_400  # seconds
_FIRST_DAY = pd.Timestamp("1900-01-01")  # BIDS: dates before 1925 are shifted


class DicomError(ValueError):
    """DICOM files that cannot be converted: names folder, series and remedy."""


@dataclass(frozen=True)
class Series:
    """The images of one series: where it was found, and a pydicom.Dataset of each file, without voxels."""

    folder: Path
    headers: list[Any]

    def get(self, name: str, default: Any = "") -> Any:
        """An entry of the first header; ``default`` where it is absent or empty."""
        value = self.headers[0].get(name)
        return default if value in (None, "") else value

    @property
    def text(self) -> str:
        """Number and description, for messages."""
        name = self.get("SeriesDescription", "no description")
        return f"{self.get('Modality')} {self.get('SeriesNumber', '?')} {name!r}"

    @property
    def digest(self) -> str:
        """Of its UID, which could identify the person."""
        return hashlib.sha256(str(self.get("SeriesInstanceUID")).encode()).hexdigest()[:16]

    @property
    def day(self) -> pd.Timestamp:
        """Date of the scan; NaT where the headers state none."""
        text = self.get("AcquisitionDate") or self.get("SeriesDate") or self.get("StudyDate")
        return pd.to_datetime(str(text), format="%Y%m%d", errors="coerce")

    @property
    def age(self) -> str:
        """Age at the scan in years, ``n/a`` where the headers state none."""
        stated = re.fullmatch(r"(\d+)([YM])", str(self.get("PatientAge")).strip())
        if stated:
            return f"{int(stated[1]) / (12 if stated[2] == 'M' else 1):g}"
        born = pd.to_datetime(str(self.get("PatientBirthDate")), format="%Y%m%d", errors="coerce")
        return "n/a" if pd.isna(born) or pd.isna(self.day) else f"{(self.day - born).days / 365.25:.1f}"

    def is_t1w(self, pattern: re.Pattern) -> bool:
        """Whether this may be a T1-weighted MRI of the whole head, by its description and number of slices."""
        words = " ".join(str(self.get(name)) for name in ("SeriesDescription", "ProtocolName", "SequenceName"))
        slices = max(len(self.headers), int(self.get("NumberOfFrames", 1)))
        named = pattern.search(words) and (pattern.pattern != T1W or not _NO_T1W.search(words))
        return self.get("Modality") == "MR" and slices >= _LEAST_SLICES and bool(named)

    def bids_name(self) -> tuple[str, str, str]:
        """Folder, entities and suffix in BIDS; a PET's tracer is that of its headers, else of its description."""
        if self.get("Modality") != "PT":
            return "anat", "", "T1w"
        stated = next(iter(self.get("RadiopharmaceuticalInformationSequence", [])), {})
        # in a description, FBP is filtered back projection, not florbetapir
        description = re.sub("fbp", "", self.get("SeriesDescription"), flags=re.IGNORECASE)
        named = [tracer_labels(text) for text in (stated.get("Radiopharmaceutical", ""), description)]
        label = next((labels[0] for labels in named if len(labels) == 1), "")
        corrected = self.get("CorrectedImage", "ATTN")
        return "pet", f"_trc-{label}" * bool(label) + "_rec-nac" * ("ATTN" not in corrected), "pet"


def read_series(folder: str | Path) -> list[Series]:
    """The series of all DICOM files below a folder, by number; other files are ignored.

    Raises `DicomError` without pydicom, dcm2niix and pypet2bids, without a DICOM file, or with files of two people.
    """
    absent = [name for name in ("pydicom", "dcm2niix", "pypet2bids") if importlib.util.find_spec(name) is None]
    if absent:
        raise DicomError(f"DICOM needs {' and '.join(absent)}: install them by `pip install 'resdm[dicom]'`")
    import pydicom  # here: it is optional

    folder, found = Path(folder), {}
    for path in [path for path in visible(folder, "**/*") if path.is_file()]:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError):
            continue
        if "SeriesInstanceUID" in header and "Rows" in header:
            found.setdefault(str(header.SeriesInstanceUID), []).append(header)
    if not found:
        raise DicomError(f"{folder}: no DICOM image; expected the files of a scanner or an archive, unpacked")
    if len({str(header.get("PatientID", "")) for headers in found.values() for header in headers}) > 1:
        raise DicomError(f"{folder}: images of more than one PatientID; give each person a folder")
    series = [Series(folder, headers) for headers in found.values()]
    return sorted(series, key=lambda one: (int(one.get("SeriesNumber", 0)), one.text))


def check_slices(series: Series) -> tuple[int, int]:
    """Number of slices and of frames; `DicomError` where some are missing or of another shape.

    Frames of a file that holds all of them are counted as they are stated.
    """
    where = f"{series.folder}: series {series.text}"
    shapes = {(header.get("Rows"), header.get("Columns"), *np.round(header.get("ImageOrientationPatient") or [], 3))
              for header in series.headers}  # fmt: skip
    if len(shapes) > 1:
        raise DicomError(f"{where}: images of different size or orientation; remove those of a localiser")
    if "NumberOfFrames" in series.headers[0]:
        return int(series.get("NumberOfFrames")), len(series.headers)
    needed = ("ImagePositionPatient", "ImageOrientationPatient")
    if any(name not in header for header in series.headers for name in needed):
        raise DicomError(f"{where}: an image without position or orientation; export it again as original images")
    row, column = np.reshape(series.get("ImageOrientationPatient"), (2, 3)).astype(float)
    places = [round(float(np.cross(row, column) @ np.array(h.ImagePositionPatient, float)), 2) for h in series.headers]
    count, steps = Counter(places), np.diff(sorted(set(places)))
    frames = max(count.values())
    if len(count) < 2:
        raise DicomError(f"{where}: {len(series.headers)} images of one position; expected slices of a volume")
    gaps = [place for place, step in zip(sorted(count), steps, strict=False) if step > 1.5 * np.median(steps)]
    stated = int(series.get("NumberOfSlices", len(count)))
    missing = f"slices are missing after position {gaps[0]:g} mm" if gaps else ""
    if stated != len(count):
        missing = missing or f"{len(count)} slices, its headers state {stated}"
    if short := sorted(place for place, n in count.items() if n < frames):
        missing = missing or f"{frames - count[short[0]]} of {frames} frames are missing at position {short[0]:g} mm"
    if missing:
        raise DicomError(f"{where}: {missing}; copy the whole series again")
    return len(count), frames


# ── conversion ────────────────────────────────────────────────────────────────────────────────────


def convert_series(series: Series, image: Path) -> Path:
    """Convert an MRI or a PET to NIfTI (``image``, ``.nii.gz``) with its sidecar.

    Raises `DicomError` where slices are missing, or the tool fails or makes another number of voxels.
    """
    slices, frames = check_slices(series)
    pet, where = series.get("Modality") == "PT", f"{series.folder}: series {series.text}"
    with TemporaryDirectory() as temporary:
        source, made = Path(temporary, "in"), Path(temporary, "out")
        source.mkdir()
        made.mkdir()
        for number, header in enumerate(series.headers):  # one series alone, under names without blanks
            (source / f"{number:05d}.dcm").symlink_to(Path(header.filename).absolute())
        arguments = ["dcm2niix", "-b", "y", "-ba", "y", "-z", "y", "-f", "scan", "-o", made, source]
        if pet:
            arguments = ["pypet2bids.dcm2niix4pet", source, "--destination-path", made / "sub-01", "--notrack"]
        # pypet2bids writes a file of settings into the home folder, and reports its use unless this is disabled
        settings = {"HOME": temporary, "PET2BIDS_TELEMETRY_ENABLED": "false"}
        settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=temporary, env=os.environ | settings,
                              capture_output=True, text=True, errors="replace")  # fmt: skip
        images = sorted(made.rglob("*.nii.gz"))
        if done.returncode or len(images) != 1:
            last_line = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise DicomError(f"{where}: {arguments[0]} made {len(images)} images, expected 1 ({last_line})")
        shape = nib.load(images[0]).shape
        expected = slices * frames * int(series.get("Rows")) * int(series.get("Columns"))
        if np.prod(shape) != expected:
            raise DicomError(f"{where}: {arguments[0]} made an image of {shape}, expected {expected} voxels in all")
        content = json.loads(sidecar_path(images[0]).read_text(encoding="utf-8")) | {"SeriesDigest": series.digest}
        with atomic(image) as to:
            to.write_bytes(images[0].read_bytes())
        write_json(sidecar_path(image), _with_injection(content, series) if pet else content)
    return image


def _with_injection(content: dict[str, Any], series: Series) -> dict[str, Any]:
    """The sidecar of a PET with times from the start of the scan, and the injection where the headers state it."""
    known = {key: value for key, value in content.items() if key != "InjectionStart"}
    moments = [_to_time(f"{header.get('AcquisitionDate', '')}{header.get('AcquisitionTime', '')}")
               for header in series.headers]  # fmt: skip
    stated = next(iter(series.get("RadiopharmaceuticalInformationSequence", [])), {})
    text = str(stated.get("RadiopharmaceuticalStartDateTime") or stated.get("RadiopharmaceuticalStartTime") or "")
    if None in moments or not text:
        return known
    first = min(moments)
    injected = _to_time(text if len(text.partition(".")[0]) > 6 else f"{first:%Y%m%d}{text}")  # a time of that day
    if injected is None:
        return known
    seconds = (injected - first).total_seconds()
    seconds -= _DAY * (seconds > _DAY / 2)  # injected before midnight, scanned after it
    starts = np.atleast_1d(known.get("FrameTimesStart", 0.0)).astype(float)
    return known | {"TimeZero": f"{first:%H:%M:%S}", "ScanStart": 0, "InjectionStart": round(seconds, 3),
                    "FrameTimesStart": (starts - starts[0]).tolist()}  # fmt: skip


def _to_time(text: str) -> pd.Timestamp | None:
    """Read a date and time; minutes and seconds may be absent."""
    stated = re.match(r"\d{8}(\d\d){1,3}(?![\d:])", text)
    moment = pd.to_datetime(stated[0].ljust(14, "0") if stated else "", format="%Y%m%d%H%M%S", errors="coerce")
    return None if pd.isna(moment) else moment


# ── data sets ─────────────────────────────────────────────────────────────────────────────────────


def convert_t1w(folder: str | Path, out: str | Path) -> Path:
    """Convert the one series below a folder, a T1-weighted MRI, to ``sub-<label>/anat/`` of a BIDS data set.

    The label is that of a folder ``sub-…`` in its path, else the letters and digits of its name. `DicomError` for more
    than one series, another modality, or another MRI there under that label.
    """
    series = read_series(folder)
    if len(series) > 1:
        found = "; ".join(f"{one.text} ({len(one.headers)} images)" for one in series)
        raise DicomError(f"{folder}: {len(series)} series, expected one: {found}; give the folder of the T1 alone")
    if series[0].get("Modality") != "MR":
        raise DicomError(f"{folder}: {series[0].text} is no MRI; give the folder of the T1")
    label, out = _label(Path(folder).absolute()), Path(out)
    image = out / label / "anat" / f"{label}_T1w.nii.gz"
    with TemporaryDirectory() as temporary:
        made = convert_series(series[0], Path(temporary) / image.name)
        if image.is_file() and sha256(image) != sha256(made):
            raise DicomError(f"{folder}: {image} is of another MRI; give another --out, or a folder named sub-<label>")
        _describe(out)
        write_json(sidecar_path(image), json.loads(sidecar_path(made).read_text(encoding="utf-8")))
        with atomic(image) as to:
            to.write_bytes(made.read_bytes())
    return image


def convert_people(folder: str | Path, out: str | Path, *, t1w: str = T1W, progress: bool = True) -> str:
    """Convert the T1w and PET series of people to a BIDS data set, for ``resdm manifest bids``.

    ``folder`` holds one folder per person, of any depth; its name gives the label ``sub-…``. Images that are in ``out``
    already stay, as do filled cells, rows and columns of its tables; delete images to convert them again. ``t1w`` is a
    regular expression of the descriptions of a T1-weighted series. Returns how many images there are, and the series
    that are not converted. `DicomError` names people of whom a series cannot be converted; the others are converted.
    """
    folder, out, failures, notes, rows = Path(folder), Path(out), [], [], []
    people = {place: _label(Path(place.name)) for place in visible(folder, "*") if place.is_dir()}
    twice = [label for label, count in Counter(people.values()).items() if count > 1]
    if not people or twice:
        fault = f"two folders of {twice[0]}" if twice else "no folder of a person"
        raise DicomError(f"{folder}: {fault}; expected one folder per person, with a name of its own")
    with locked(out, "dicom"):
        _describe(out)
        for place, label in tqdm(people.items(), desc="people", unit="person", disable=not progress):
            try:
                rows.append(_convert_person(place, out / label, re.compile(t1w, re.IGNORECASE), notes))
            except DicomError as error:
                failures.append(str(error))
        _write_table(out / "participants.tsv", "sub-", ["participant_id", "sex"], rows, notes)
    if failures:
        done = f"{len(rows)} of {len(people)} people are converted; correct the others and run the same command again"
        raise DicomError("\n".join([*failures, done]))
    images = len(visible(out, "sub-*/ses-*/*/*.nii.gz"))
    return "\n".join([*notes, f"{images} images of {len(rows)} people in {out}; next: resdm manifest bids PROFILE"])


def _write_table(path: Path, prefix: str, columns: list[str], rows: list[dict[str, str]], notes: list[str]) -> None:
    """Write a table of BIDS, its key first; filled cells, rows and columns of the one that is there stay."""
    key, known = columns[0], {row[columns[0]]: row for row in rows}
    for name, cells in read_by_key(path, key, prefix, notes=notes).items():
        known[name] = {key: name} | known.get(name, {}) | {column: text for column, text in cells.items() if text}
        columns = [*columns, *(column for column in cells if column not in columns)]
    # ses-10 after ses-2
    names = sorted(known, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))
    table = pd.DataFrame([known[name] for name in names], columns=columns)
    write_csv(path, table.fillna("").replace("", "n/a"), separator="\t")


def _convert_person(place: Path, out: Path, t1w: re.Pattern, notes: list[str]) -> dict[str, str]:
    """Convert a person's series, with the tables of sessions and scans; the row of ``participants.tsv``."""
    everything = read_series(place)
    used = [series for series in everything if series.get("Modality") == "PT" or series.is_t1w(t1w)]
    for path in visible(out, "ses-*/*/*.json"):  # sessions are numbered by all scans of a person
        if (stored_json(path) or {}).get("SeriesDigest") not in {None, *(series.digest for series in used)}:
            fault = f"{place}: lacks the series of {path.with_suffix('.nii.gz')}"
            raise DicomError(f"{fault}; put all scans of this person in one folder, or delete {out}")
    notes += [f"{place}: not converted: {series.text}, {len(series.headers)} images" for series in everything
              if series not in used]  # fmt: skip
    days = sorted({series.day for series in used if not pd.isna(series.day)})
    undated = [series.text for series in used if pd.isna(series.day)] if days else []
    days += [pd.NaT] * bool(undated or not days)
    notes += [f"{place}: {text} has no date; it is put in a session of its own, ses-{len(days)}, without day and age"
              for text in undated]  # fmt: skip
    times = ["n/a" if pd.isna(day) else f"{_FIRST_DAY + (day - days[0]):%Y-%m-%d}T00:00:00" for day in days]
    sessions, scans = [], {number: [] for number in range(len(days))}
    taken: Counter[str] = Counter()
    for series in used:
        number = len(days) - 1 if pd.isna(series.day) else days.index(series.day)
        session = f"ses-{number + 1}"
        kind, entities, suffix = series.bids_name()
        taken[f"{session}{entities}_{suffix}"] += 1
        run = taken[f"{session}{entities}_{suffix}"]
        name = f"{kind}/{out.name}_{session}{entities}{f'_run-{run}' if run > 1 else ''}_{suffix}.nii.gz"
        image = out / session / name
        stored = stored_json(sidecar_path(image)) if image.is_file() else None
        if stored is None:
            convert_series(series, image)
        elif stored.get("SeriesDigest", series.digest) != series.digest:
            fault = f"{image} is of another series, since scans were added or removed"
            raise DicomError(f"{place}: {fault}; delete {out} and run the same command again")
        scans[number].append({"filename": name, "acq_time": times[number]})
    for number, rows in scans.items():
        session = f"ses-{number + 1}"
        same = [series.age for series in used if series.day == days[number] or len(days) == 1]
        age = next((age for age in same if age != "n/a"), "n/a")
        sessions.append({"session_id": session, "acq_time": times[number], "age": age})
        if rows:
            _write_table(out / session / f"{out.name}_{session}_scans.tsv", "", ["filename", "acq_time"], rows, notes)
    _write_table(out / f"{out.name}_sessions.tsv", "ses-", ["session_id", "acq_time", "age"], sessions, notes)
    sex = next(filter(None, (series.get("PatientSex") for series in everything)), "n/a")
    return {"participant_id": out.name, "sex": sex}


def _label(folder: Path) -> str:
    named = [part for part in folder.parts if re.fullmatch("sub-[a-zA-Z0-9]+", part)]
    return named[-1] if named else f"sub-{re.sub('[^a-zA-Z0-9]', '', folder.name) or '01'}"


def _describe(out: Path) -> None:
    """Describe the raw data set; `DicomError` for one of another origin, whose files would be replaced."""
    made_by = {"Name": "resdm", "Version": __version__, "Description": "DICOM by dcm2niix and pypet2bids"}
    ours = made_by["Description"] in [tool.get("Description") for tool in tools_of(out)]
    if not ours and any((out / name).is_file() for name in (DESCRIPTION, "participants.tsv")):
        raise DicomError(f"{out}: holds a data set that was not converted from DICOM by resdm; give another folder")
    about = {"Name": "Converted from DICOM", "BIDSVersion": "1.9.0", "DatasetType": "raw", "GeneratedBy": [made_by]}
    write_json(out / DESCRIPTION, about)
    write_text(out / "README", "Converted from DICOM. Dates are shifted: each person's first scan is on 1900-01-01.\n")
