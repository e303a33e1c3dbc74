"""A made-up ADNI download in each layout that its users have, with the study tables old and new, and the truth of it.

These people are invented: site 999 does not exist, and identifiers are assembled at run time, so no file contains one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from native_scans import SOURCE, about, rotation, scan_of, storage
from scipy import ndimage

from resdm_suite.anatomy import CENTRE_MM, SUMMARY, Grid, mni_map, regions

SITE = 999
MK, AV45, FBB, TAU, T1 = "18FMK6240", "18FAV45", "18FFBB", "18FAV1451", "T1w"
_LONI = {AV45: "AV45", FBB: "FBB", TAU: "AV1451", MK: "MK6240"}
_TABLE = {AV45: "FBP", FBB: "FBB", TAU: "FTP", MK: "MK6240"}
_STANDARD = "Coreg,_Avg,_Standardized_Image_and_Voxel_Size"
_NEARER, _FAR = "its PET goes with a T1 that lies nearer", "PET more than 180 days from the T1"
_NO_PET, _UNKNOWN, _NO_T1 = "no amyloid or tau PET", "no age, or no sex", "no T1"


@dataclass(frozen=True)
class Person:
    """``scans``: (T1w or tracer, month of the visit, days after the visit)."""

    number: int
    scans: tuple[tuple[str, int, int], ...]
    left_out: tuple[tuple[int, str], ...] = ()  # month of the visit, reason

    rid = property(lambda p: 7 + p.number)  # as 0007: padded in some tables and not in others
    ptid = property(lambda p: f"{SITE:03d}_S_{p.rid:04d}")
    name = property(lambda p: f"sub-ADNI{SITE:03d}S{p.rid:04d}")
    months = property(lambda p: sorted({month for _, month, _ in p.scans} | {0}))
    sex = property(lambda p: "FM"[p.number % 2])
    diagnosis = property(lambda p: ("CN", "MCI", "AD")[p.number % 3])
    age = property(lambda p: 60.5 + p.number % 30)
    education = property(lambda p: 10 + p.number % 9)
    mmse = property(lambda p: 30 - p.number % 10)
    amyloid = property(lambda p: round(0.9 + 0.05 * (p.number % 20), 3))
    tau = property(lambda p: round(1.1 + 0.04 * (p.number % 20), 3))
    reference = property(lambda p: 1.0 if p.number % 2 else 0.8)
    # -4: a value, no code for missing
    centiloid = property(lambda p: -4 if p.number == 1 else round(180 * (p.amyloid - 1.0)))

    def day(self, month: int, after: int = 0) -> np.datetime64:
        baseline = np.datetime64("2012-01-10") + 31 * (self.number % 60)
        return baseline + round(month * 365.25 / 12) + after


@dataclass(frozen=True)
class Mock:
    """The mock as written. ``kept``: sessions, by month, within a window of 180 days; ``left_out``: the reasons."""

    root: Path
    people: tuple[Person, ...]
    kept: tuple[tuple[str, int], ...]
    left_out: tuple[tuple[str, int, str], ...]
    corrupt: Path | None = None
    files: list[Path] = field(default_factory=list)

    kept_people = property(lambda mock: {name for name, _ in mock.kept})


def make_people(people: int = 14) -> tuple[Person, ...]:
    """The first fourteen have a quirk each; those after them have none."""
    visit = ((T1, 0, 0), (AV45, 0, 14), (TAU, 0, 30))
    scans = {
        3: (*visit, (FBB, 0, 3)),  # two amyloid tracers
        4: ((T1, 0, 0), (FBB, 0, 21)),
        5: (*visit, (T1, 24, 0), (AV45, 24, 10), (TAU, 24, -20)),  # a repeat visit
        6: (*visit, (T1, 6, 0)),
        7: ((T1, 0, 0), (AV45, 36, 0), (TAU, 36, 7)),  # the visits between are missing
        8: ((T1, 0, 0), (MK, 0, 5)),
        12: visit[1:],
    }
    out = {6: ((6, _NEARER),), 7: ((0, _FAR),), 8: ((0, _NO_PET),), 12: ((0, _NO_T1),), 13: ((0, _UNKNOWN),)}
    return tuple(Person(n, scans.get(n, visit), out.get(n, ())) for n in range(people))


def write_clinica_bids(folder: Path, people: int = 14, **options) -> Mock:
    """As ``clinica convert adni-to-bids`` leaves it; options as `_write`."""
    made = make_people(people)
    head = ["participant_id", "alternative_id_1", "sex", "education_level", "age_bl", "diagnosis_sc", "mmse_bl"]
    rows = [[p.name, p.ptid, p.sex, p.education, p.age, p.diagnosis, p.mmse] for p in made if p.number != 13]
    _tsv(folder / "participants.tsv", head, rows)
    for p in made:  # a_stat and tau_stat the same for everybody: read, they would show
        ages = {m: "n/a" if p.number == 13 else f"{_age(p, m):.4f}" for m in p.months}
        rows = [[f"ses-M{m:03d}", p.day(m), age, p.diagnosis, p.mmse, "+", "-"] for m, age in ages.items()]
        head = ["session_id", "examination_date", "age", "diagnosis", "MMSE", "a_stat", "tau_stat"]
        _tsv(folder / p.name / f"{p.name}_sessions.tsv", head, rows)

    def place(p: Person, what: str, month: int, after: int) -> list[Path]:
        session = f"ses-M{month:03d}"
        stem = f"{p.name}_{session}"
        name = f"anat/{stem}_T1w" if what == T1 else f"pet/{stem}_trc-{what}_rec-coregavg_pet"
        return [folder / p.name / session / f"{name}.nii.gz"]

    return _write(folder, made, place, **options)


def write_caps(folder: Path, people: int = 14, **options) -> Mock:
    """Output of ``clinica run t1-linear`` and ``pet-linear``, in MNI space; options as `_write`.

    The second person has the uncropped and the cropped, the third only the cropped.
    """

    def place(p: Person, what: str, month: int, after: int) -> list[Path]:
        session = f"ses-M{month:03d}"
        stem, space = f"{p.name}_{session}", "space-MNI152NLin2009cSym"
        at = folder / "subjects" / p.name / session
        crops = {1: ("", "_desc-Crop"), 2: ("_desc-Crop",)}.get(p.number, ("",))
        suvr = "pons2" if what in (TAU, MK) else "cerebellumPons2"
        name = f"t1_linear/{stem}_{space}{{}}_res-1x1x1_T1w"
        if what != T1:
            name = f"pet_linear/{stem}_trc-{what}_{space}{{}}_res-1x1x1_suvr-{suvr}_pet"
        return [at / f"{name.format(crop)}.nii.gz" for crop in crops]

    return _write(folder, make_people(people), place, standard=True, **options)


def write_loni(folder: Path, people: int = 14, **options) -> Mock:
    """As LONI's downloads unpack, converted to NIfTI; options as `_write`.

    The first person's amyloid PET is the dynamic one, the second's is there at two levels; the third has a repeated
    T1 and a T1 as DICOM only; everybody has an FDG PET.
    """
    made = make_people(people)
    number = iter(range(100_000, 1_000_000))

    def image(p: Person, sequence: str, day: np.datetime64, suffix: str) -> Path:
        uid = f"I{next(number)}"
        at = folder / "ADNI" / p.ptid / sequence / f"{day}_09_12_33.0" / uid
        return at / f"ADNI_{p.ptid}_{sequence.replace(',', '')}_{uid}{suffix}"

    def place(p: Person, what: str, month: int, after: int) -> list[Path]:
        day, suffix = p.day(month, after), ".nii" if p.number % 4 else ".nii.gz"
        if what == T1:
            names = ["MPRAGE_Repeat"] * (p.number == 2) + ["Accelerated_Sag_IR-FSPGR"]
            return [image(p, name, day, suffix) for name in names]
        if p.number == 0 and what == AV45:
            return [image(p, "AV45_Co-registered_Dynamic", day, suffix)]
        levels = [_STANDARD]
        if p.number == 1:
            levels.insert(0, "Coreg,_Avg,_Std_Img_and_Vox_Siz,_Uniform_Resolution")
        return [image(p, f"{_LONI[what]}_{level}", day, suffix) for level in levels]

    mock = _write(folder, made, place, **options)
    others = [image(p, _STANDARD, p.day(0, 40), ".nii") for p in made]  # FDG: no tracer in its name
    for path in [*others, *(image(p, "MPRAGE", p.day(36), ".dcm") for p in made if p.number == 2)]:
        path.parent.mkdir(parents=True)
        path.touch()
    return mock


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def _write(folder: Path, made: tuple[Person, ...], place: Callable[..., list[Path]], *, tables: str = "new",
           images: bool = True, corrupt: bool = False, standard: bool = False) -> Mock:  # fmt: skip
    """``tables``: new, old or none, in ``tables/``. ``images``: else the files are empty.

    ``corrupt``: the T1 of the eleventh person is cut off in its middle. ``standard``: all scans on one MNI grid.
    """
    files, broken = [], None
    for p in made:
        rng = np.random.default_rng([0, p.number])
        pose = _pose(rng)
        for what, month, after in p.scans:
            paths = place(p, what, month, after)
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                if images:
                    nib.save(_standard(p, what) if standard else _native(p, what, pose, rng), path)
                else:
                    path.touch()
            files += paths
            if corrupt and p.number == 10 and what == T1:
                broken = paths[0]
                broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    if tables != "none":
        {"new": _new_tables, "old": _old_tables}[tables](folder / "tables", made)
    out = tuple((p.name, month, reason) for p in made for month, reason in p.left_out)
    gone = {(name, month) for name, month, _ in out}
    kept = tuple((p.name, m) for p in made for what, m, _ in p.scans if what == T1 and (p.name, m) not in gone)
    return Mock(folder, made, kept, out, broken, files)


@cache
def _maps(what: str) -> tuple[np.ndarray, np.ndarray]:
    """On `SOURCE`: a head, and its part in the summary region of a tracer."""
    if what == T1:
        return mni_map("t1", SOURCE), np.zeros(SOURCE.shape)
    masks = regions(SOURCE)
    inside = np.any([masks[name] for name in SUMMARY["tau" if what in (TAU, MK) else "amyloid"]], axis=0)
    uptake = 1.3 * mni_map("gm", SOURCE) + 0.9 * mni_map("wm", SOURCE)
    return ndimage.gaussian_filter(uptake, 1.3), ndimage.gaussian_filter(uptake * inside, 1.3)


def _head(p: Person, what: str) -> np.ndarray:
    """A T1, or a PET with about the SUVR of the tables in its summary region."""
    head, inside = _maps(what)
    return head + (p.tau - 1.0 if what in (TAU, MK) else p.amyloid - 1.0) * inside


def _pose(rng: np.random.Generator) -> np.ndarray:
    size = np.eye(4)
    size[:3, :3] = np.diag(rng.uniform(0.95, 1.05, 3))
    return about(size @ rotation(rng.uniform(-6, 6, 3)), CENTRE_MM, rng.uniform(-5, 5, 3))


def _native(p: Person, what: str, pose: np.ndarray, rng: np.random.Generator) -> nib.Nifti1Image:
    """The second person's scans are oblique, the third's left-handed, and the first's amyloid PET has three frames."""
    moved = about(rotation(rng.uniform(-4, 4, 3)), CENTRE_MM, rng.uniform(-4, 4, 3)) if what != T1 else np.eye(4)
    shape = (44, 50, 46)
    tilt = (12, -9, 7) if p.number == 1 else (0, 0, 0)
    affine = storage("LAS" if p.number == 2 else "RAS", (4.5, 4.5, 4.5), shape, np.array(CENTRE_MM), tilt)
    scan = scan_of(_head(p, what), affine, shape, pose @ moved)
    data = 3000 * scan.data
    data = np.maximum(data + rng.normal(0, 30, shape) * (scan.data > 0.05), 0).astype(np.float32)
    if p.number == 0 and what == AV45:
        data = np.stack([0.8 * data, data, 1.2 * data], axis=3)
    return _image(data, affine)


def _standard(p: Person, what: str) -> nib.Nifti1Image:
    grid = Grid((48, 56, 48), 4.0)
    scan = scan_of(_head(p, what), grid.affine, grid.shape, np.eye(4))
    return _image(scan.data * (1 + p.number / 100), grid.affine)  # no two people have the same scan


def _image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def _age(p: Person, month: int) -> float:
    return p.age + (p.day(month) - p.day(0)).astype(int) / 365.25


def _born(p: Person) -> str:
    """Month and year, all that the study gives away."""
    year, month, _ = str(p.day(0) - round(p.age * 365.25)).split("-")
    return f"{month}/{year}"


def _american(day: np.datetime64) -> str:
    year, month, date = str(day).split("-")
    return f"{month}/{date}/{year}"


def _pets(made: tuple[Person, ...], *tracers: str) -> list[tuple[Person, str, np.datetime64]]:
    return [(p, what, p.day(m, after)) for p in made for what, m, after in p.scans if what in tracers]


def _new_tables(folder: Path, made: tuple[Person, ...]) -> None:
    """UCBERKELEY_*_6MM and ADNIMERGE2's: RIDs padded or as decimals, a BOM, Windows line ends, codes for missing."""
    known = [p for p in made if p.number != 13]
    head = ["LONIUID", "RID", "PTID", "VISCODE", "SCANDATE", "qc_flag", "TRACER", "SUMMARY_SUVR", "AMYLOID_STATUS",
            "CENTILOIDS"]  # fmt: skip
    rows = [
        [f"I{p.number}", f"{p.rid:04d}", p.ptid, "bl", day, 0 if p.number == 9 else 2 - p.number % 2, _TABLE[what],
         p.amyloid, int(p.amyloid >= {AV45: 1.11, FBB: 1.08}[what]), p.centiloid]
        for p, what, day in _pets(made, AV45, FBB)
    ]  # fmt: skip
    _csv(folder / "UCBERKELEY_AMY_6MM_15Nov2024.csv", head, rows)
    _csv(folder / "UCBERKELEY_AMY_6MM_02Jan2023.csv", head, [[*row[:7], 9.9, 1, 300] for row in rows])  # not the newest
    head = ["RID", "SCANDATE", "qc_flag", "TRACER", "META_TEMPORAL_SUVR", "INFERIORCEREBELLUM_SUVR"]
    rows = [[f"{p.rid:04d}", _american(day), 2, _TABLE[what], round(p.tau * p.reference, 6), p.reference]
            for p, what, day in _pets(made, TAU, MK)]  # fmt: skip
    _csv(folder / "All_Subjects_UCBERKELEY_TAU_6MM_15Nov2024.csv", head, rows)
    born = [[p.rid, p.ptid, "sc", 1 + (p.sex == "F"), _born(p), p.education] for p in known]
    born.append([known[0].rid, known[0].ptid, "m12", -4, -4, -4])
    _csv(folder / "PTDEMOG_15Nov2024.csv", ["RID", "PTID", "VISCODE2", "PTGENDER", "PTDOB", "PTEDUCAT"], born, bom=True)
    code = {"CN": 1, "MCI": 2, "AD": 3}
    visits = [(p, m, "bl" if m == 0 else f"m{m:02d}") for p in known for m in p.months]
    rows = [[f"{p.rid}.0", viscode, _american(p.day(m)), code[p.diagnosis]] for p, m, viscode in visits]
    _csv(folder / "DXSUM_15Nov2024.csv", ["RID", "VISCODE2", "EXAMDATE", "DIAGNOSIS"], rows, crlf=True)
    rows = [[p.rid, viscode, p.day(m), p.mmse] for p, m, viscode in visits]
    rows.append([known[0].rid, "m03", known[0].day(3), -1])
    _csv(folder / "MMSE_15Nov2024.csv", ["RID", "VISCODE2", "VISDATE", "MMSCORE"], rows)


def _old_tables(folder: Path, made: tuple[Person, ...]) -> None:
    """UCBERKELEYAV45, UCBERKELEYFBB, UCBERKELEYAV1451 and ADNIMERGE."""
    for what, name, cutoff in ((AV45, "AV45", 1.11), (FBB, "FBB", 1.08)):
        suvr = "SUMMARYSUVR_WHOLECEREBNORM"
        rows = [
            [f"{p.rid:04d}", day, p.amyloid, int(p.amyloid >= cutoff)]
            for p, _, day in _pets(made, what)
            if p.number != 9  # there is no QC column: what fails is not there
        ]
        head = ["RID", "EXAMDATE", suvr, f"{suvr}_{cutoff}CUTOFF"]
        _csv(folder / f"UCBERKELEY{name}_01_14_21.csv", head, rows)
    rows = [[p.rid, _american(day), round(p.tau * p.reference, 6), 1.0, p.reference] for p, _, day in _pets(made, TAU)]
    head = ["RID", "EXAMDATE", "META_TEMPORAL_SUVR", "BRAAK1_SUVR", "INFERIORCEREBELLUM_SUVR"]
    _csv(folder / "UCBERKELEYAV1451_01_14_21.csv", head, rows)
    words = {"CN": "CN", "MCI": "MCI", "AD": "Dementia"}
    rows = [
        [p.rid, p.ptid, "bl" if m == 0 else f"m{m:02d}", p.day(m), p.day(0), words[p.diagnosis], words[p.diagnosis],
         p.age, {"F": "Female", "M": "Male"}[p.sex], p.education, p.mmse]
        for p in made if p.number != 13
        for m in p.months
    ]  # fmt: skip
    head = ["RID", "PTID", "VISCODE", "EXAMDATE", "EXAMDATE_bl", "DX", "DX_bl", "AGE", "PTGENDER", "PTEDUCAT", "MMSE"]
    _csv(folder / "ADNIMERGE_12Mar2024.csv", head, rows)


def _tsv(path: Path, head: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [head, *rows]))


def _csv(path: Path, head: list[str], rows: list[list], bom: bool = False, crlf: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n" if crlf else "\n").writerows([head, *rows])
