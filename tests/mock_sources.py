"""Mock downloads: the layout, names, columns and quirks of each source, around small heads in different poses.

Every writer returns a `Truth`: which sessions belong in the manifest under a window of a year, and why the others do
not. Nobody here exists. ``heads=False``: all have the head of the first person and no scan is cut off, which is faster
where only names and tables are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from native_scans import make_visit, save
from scipy.ndimage import gaussian_filter

from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.cohorts.matching import Cohort

NO_T1, NO_PET, FAR, UNKNOWN = "no T1", "no amyloid or tau PET", "PET more than", "no age, or no sex"
"""How a reason to be left out starts."""

_CODES = [("RAS", "LAS"), ("LPI", "RAS"), ("PSR", "LPS"), ("ASL", "RPI")]  # T1 and PET, right- and left-handed
_LABELS = {"amyloid": "18FAV45", "tau": "18FAV1451"}

Session = tuple[str, str]


@dataclass
class Truth:
    """What must come of a mock download.

    Parameters
    ----------
    root : Path
        What ``--root`` takes.
    kept : dict of (person, session) to set of {"amyloid", "tau"}
        Sessions of the manifest and the PETs that each has in it.
    left_out : dict of (person, session) to str
        How the reason starts.
    corrupt : Path or None
        A scan of the manifest, cut off in the middle: preprocessing names it.
    split : dict of person to str
        Where the source comes with one.
    """

    root: Path
    kept: dict[Session, set[str]] = field(default_factory=dict)
    left_out: dict[Session, str] = field(default_factory=dict)
    corrupt: Path | None = None
    split: dict[str, str] = field(default_factory=dict)

    def check(self, found: Cohort) -> None:
        """Compare with what a reader found: sessions with their PETs, and the reasons of the others."""
        assert self.kept == {
            (row.person, row.session): {tracer for tracer in _LABELS if getattr(row, tracer)}
            for row in found.manifest.itertuples()
        }
        reasons = {(row.person, row.session): row.reason for row in found.left_out.itertuples()}
        assert reasons.keys() == self.left_out.keys()
        assert all(reasons[key].startswith(reason) for key, reason in self.left_out.items())

    def add(self, key: Session, pets: set[str], reasons: dict[str, bool]) -> None:
        """A session with its PETs in the manifest, or the first reason against it."""
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason:
            self.left_out[key] = reason
        else:
            self.kept[key] = pets

    def cut(self, path: Path) -> None:
        """Cut a file off in the middle."""
        self.corrupt = path
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@cache
def _visit(number: int, heads: bool) -> tuple[tuple, dict[str, tuple]]:
    """(data, affine) of a T1 and of both PETs: oblique axes, stored in one order or another."""
    if not heads:
        return _visit(0, True)
    t1_code, pet_code = _CODES[number % len(_CODES)]
    visit = make_visit(number, turn=8, shift=6, t1_code=t1_code, pet_code=pet_code)
    return (visit.t1.data, visit.t1.affine), _two_tracers(visit.pet.data, visit.pet.affine)


def _two_tracers(uptake: np.ndarray, affine: np.ndarray) -> dict[str, tuple]:
    """(data, affine) of both PETs, of one shape; never of the same bytes, which preprocessing refuses."""
    return {"amyloid": (uptake, affine), "tau": (0.8 * gaussian_filter(uptake, 0.6), affine)}


def _counts(data: np.ndarray, *shares: float) -> np.ndarray:
    """As a scanner stores it, in whole numbers; in frames where there are shares."""
    return np.rint(np.stack([share * data for share in shares], axis=3) if shares else data).astype(np.int16)


def _tsv(path: Path, rows: list[dict], line: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pd.DataFrame(rows).to_csv(sep="\t", index=False, na_rep="n/a", lineterminator=line)
    path.write_bytes(text.rstrip(line).encode())


# ── OpenNeuro ds004856 ────────────────────────────────────────────────────────────────────────────

_AMYLOID_SIDECAR = {
    "Modality": "PT", "Units": "Bq/mL", "MultibandAccelerationFactor": 48, "SliceTiming": [0] * 48,
    "TracerName": "AV-45 florbetapir", "TracerRadionuclide": "F18", "InjectedRadioactivity": 7,
    "InjectedRadioactivityUnits": "mSV", "InjectedMass": 10, "InjectedMassUnits": "approximate mCi",
    "InjectionStart": -3.0e6, "FrameDuration": [300000, 300000], "FrameTimesStart": [0, 300000],
    "FrameDurationUnits": "ms", "AcquisitionMode": "dynamic", "ReconMethodName": "back-projection",
    "ReconMethodParameterLabels": ["subsets", "iterations"],
}  # fmt: skip
_TAU_SIDECAR = _AMYLOID_SIDECAR | {
    "Radiopharmaceutical": "[18F]Florbetaben", "TracerName": "AV-1451 flortaucipir", "InjectedRadioactivity": 8.92,
    "InjectionStart": -4.8e6, "FrameDuration": [1.2e6, 0], "FrameTimesStart": [0, 1.2e6], "ReconMethodName": "VPHD",
}  # fmt: skip
_DLBS_COLUMNS = [
    "participant_id", "AgeCog_W1", "AgeMRI_W1", "AgePETAmy_W1", "AgeCog_W2", "AgeMRI_W2", "AgePETAmy_W2",
    "AgePETTau_W2", "AgeCog_W3", "AgeMRI_W3", "AgePETAmy_W3", "AgePETTau_W3", "Sex", "Race", "Ethnicity",
    "EduYrsEstCap", "EduComp", "MMSE_W1", "MMSE_W2", "MMSE_W3", "MRIW1toW2", "MRIW2toW3", "MRIW1toW3",
    "PETAmyW1toW2", "PETAmyW2toW3", "PETAmyW1toW3",
]  # fmt: skip


def write_dlbs(folder: Path, heads: bool = True) -> Truth:
    """Waves, ages in whole years, sidecars in milliseconds, 4D PET, some with an empty last frame."""
    truth = Truth(folder)
    rows = []
    for i in range(14):
        person, age = f"sub-9{i:03d}", 52 + 3 * (i % 13)
        row = dict.fromkeys(_DLBS_COLUMNS, "n/a")
        row |= {"participant_id": person, "Sex": "fm"[i % 2], "EduYrsEstCap": 12 + i % 9, "Race": 5, "Ethnicity": 2}
        # wave → years from the T1 to the amyloid and the tau PET; None: no scan. No tau PET in wave 1.
        waves: dict[int, tuple[int | None, int | None]] = {1: (i % 2, None)}
        if i % 2 == 0:
            waves[2] = (0, 1)
        waves |= {  # of 1, the tau is beyond the window; of 5, the second T1 is missing
            1: {3: (1, 3)}, 3: {1: (None, None), 2: (0, None)}, 5: {2: (0, None)}, 7: {2: (4, None)},
        }.get(i, {})  # fmt: skip
        if i == 11:
            row["Sex"] = "n/a"
        for wave, (amyloid, tau) in waves.items():
            key = person, f"ses-wave{wave}"
            years = {"amyloid": amyloid, "tau": tau}
            t1, pets = _visit(10 * i + wave, heads)
            stem = folder / person / key[1]
            there = age + 4 * (wave - 1)
            row[f"AgeCog_W{wave}"], row[f"MMSE_W{wave}"] = there, 30 - i % 4
            missing = (i, wave) == (5, 2)
            row[f"AgeMRI_W{wave}"] = "n/a" if missing else there
            if not missing:
                save(stem / "anat" / f"{person}_{key[1]}_acq-MPRAGE_run-1_T1w.nii.gz", _counts(t1[0]), t1[1])
            if i == 9:
                save(stem / "anat" / f"{person}_{key[1]}_acq-MPRAGE_run-2_T1w.nii.gz", _counts(t1[0] * 1.01), t1[1])
            for tracer, gap in years.items():
                if gap is None:
                    continue
                row[f"AgePET{'Amy' if tracer == 'amyloid' else 'Tau'}_W{wave}"] = there + gap
                name = f"{person}_{key[1]}_trc-{_LABELS[tracer]}_run-1_pet"
                shares = (0.9, 1.1) if tracer == "amyloid" else (1.0, 0.0)
                save(stem / "pet" / f"{name}.nii.gz", _counts(pets[tracer][0], *shares), pets[tracer][1])
                sidecar = _AMYLOID_SIDECAR if tracer == "amyloid" else _TAU_SIDECAR
                (stem / "pet" / f"{name}.json").write_text(json.dumps(sidecar, indent=2))
            in_window = {tracer for tracer, gap in years.items() if gap is not None and abs(gap) <= 1}
            reasons = {NO_T1: missing, NO_PET: amyloid is None and tau is None, FAR: not in_window, UNKNOWN: i == 11}
            truth.add(key, in_window, reasons)
        rows.append(row)
    _tsv(folder / "participants.tsv", rows, "\r\n")
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "a mock", "BIDSVersion": "1.9.0"}))
    if heads:
        truth.cut(next(folder.glob("sub-9004/ses-wave2/pet/*trc-18FAV1451*.nii.gz")))
    return truth


# ── any BIDS data set ─────────────────────────────────────────────────────────────────────────────


def write_bids(folder: Path) -> Truth:
    """Months in the sessions' labels, two amyloid tracers, dates of scans, one person in MNI space already."""
    truth = Truth(folder)
    rows = []
    for i in range(14):
        person = f"sub-b{i:02d}"
        rows.append(
            {"participant_id": person, "sex": "FM"[i % 2], "age": 60 + i, "diagnosis": ("CN", "MCI", "AD")[i % 3]}
        )
        months = [0, 24] if i in (2, 6) else [0]  # repeat visits
        visits = []
        for month in months:
            key = person, f"ses-M{month:03d}"
            visits.append({"session_id": key[1], "age": 60 + i + month / 12, "diagnosis": ("CN", "MCI", "AD")[i % 3]})
            t1, pets = _visit(10 * i + month, True)
            stem, name = folder / person / key[1], f"{person}_{key[1]}"
            space = ""
            if i == 4:  # a derivative: all on one grid
                space, grid = "_space-MNI152NLin2009cSym", Grid((48, 56, 48), 4.0)
                t1 = (900 * mni_map("t1", grid), grid.affine)
                uptake = gaussian_filter(1.3 * mni_map("gm", grid) + 0.9 * mni_map("wm", grid), 0.7)
                pets = _two_tracers(3000 * uptake, grid.affine)
            has = {0: {"amyloid"}, 1: {"tau"}}.get(i, {"amyloid", "tau"})
            if i == 3:
                has = set()
            labels = _LABELS | ({"amyloid": "18FFBB"} if i % 3 == 1 else {})
            dates = {"": f"20{10 + month // 12}-03-01T10:00:00"}
            if i != 5:  # no T1
                save(stem / "anat" / f"{name}{space}_T1w.nii.gz", _counts(t1[0]), t1[1])
            for tracer in sorted(has):
                path = stem / "pet" / f"{name}_trc-{labels[tracer]}{space}_pet.nii.gz"
                shares = (1, 1) if i % 4 == 2 else ()
                save(path, _counts(pets[tracer][0], *shares), pets[tracer][1])
                far = i == 7 and tracer == "tau"
                dates[path.name] = f"20{12 if far else 10 + month // 12}-05-10T09:30:00"
            listed = [{"filename": f"anat/{name}{space}_T1w.nii.gz", "acq_time": dates.pop("")}]
            listed += [{"filename": f"pet/{path}", "acq_time": date} for path, date in dates.items()]
            _tsv(stem / f"{name}_scans.tsv", listed)
            truth.add(key, has - {"tau"} if i == 7 else has, {NO_PET: i == 3, NO_T1: i == 5})
        _tsv(folder / person / f"{person}_sessions.tsv", visits)
    _tsv(folder / "participants.tsv", rows)
    truth.cut(next(folder.glob("sub-b08/ses-M000/pet/*trc-18FAV1451*.nii.gz")))
    return truth


# ── a user's table ────────────────────────────────────────────────────────────────────────────────


def write_csv_cohort(folder: Path, heads: bool = True) -> Truth:
    """As a spreadsheet saves it: a byte-order mark, CRLF, some of the columns, in another order."""
    truth = Truth(folder / "people.csv")
    rows = []
    for i in range(14):
        person = f"sub-own{i:02d}"
        for year in (0, 2) if i == 2 else (0,):
            key = person, f"ses-{year + 1}"
            t1, pets = _visit(10 * i + year, heads)
            row = {"age": 58.5 + i + year, "sex": "FM"[i % 2], "session": key[1], "person": person}
            stem = Path("scans") / f"{i:02d}_{year}"
            row["t1w"] = (stem / "t1.nii.gz").as_posix()
            save(folder / row["t1w"], _counts(t1[0]), t1[1])
            has = {0: {"amyloid"}, 1: {"tau"}}.get(i, {"amyloid", "tau"})
            for tracer in sorted(has):
                row |= {tracer: (stem / f"{tracer}.nii.gz").as_posix(), f"{tracer}_tracer": _LABELS[tracer]}
                row[f"{tracer}_days"] = {3: 400, 4: -200}.get(i, 30)
                save(folder / row[tracer], _counts(pets[tracer][0]), pets[tracer][1])
            truth.add(key, has, {FAR: i == 3})
            rows.append(row)
    truth.root.write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n"), "utf-8-sig", newline="")
    if heads:
        truth.cut(folder / "scans" / "06_0" / "tau.nii.gz")
    return truth


# ── the released code's folders ───────────────────────────────────────────────────────────────────


def participant(number: int) -> str:
    """An ID in the form of ADNI's, of a site that there is not."""
    return f"{990 + number % 9}" + "S" + f"{1000 + number}"


def write_released(folder: Path, heads: bool = True) -> Truth:
    """Volumes in [0, 1] under one name per person, lists of IDs, a Latin-1 table; some headers state MNI152."""
    truth = Truth(folder)
    grid = Grid((48, 56, 48), 4.0)
    rows, lists = [], {"train": [], "validation": [], "test": []}
    for i in range(14):
        name = participant(i)
        person = f"sub-{name}"
        has = {0: {"amyloid"}, 1: {"tau"}, 3: set()}.get(i, {"amyloid", "tau"})
        t1, pets = _visit(10 * i, heads)
        code = 1
        if i % 2:  # in one space, as the released code has them
            code, t1 = 4, (mni_map("t1", grid) ** (1 + i / 100), grid.affine)  # nobody has the same as another
            rng = np.random.default_rng(i)
            uptake = gaussian_filter(rng.uniform(1.1, 1.5) * mni_map("gm", grid) + 0.9 * mni_map("wm", grid), 0.7)
            pets = _two_tracers(uptake, grid.affine)
        for place, (data, affine) in {"MRI": t1, "Abeta": pets["amyloid"], "Tau": pets["tau"]}.items():
            if {"Abeta": "amyloid", "Tau": "tau"}.get(place, "amyloid") in has or place == "MRI":
                unit = (data / data.max()).astype(np.float32)
                save(folder / "data" / f"whole_{place}" / f"{name}.nii", unit, affine, (code, code))
        sex = "" if i == 5 else ("F", "M")[i % 2]
        rows.append({"ID": name, "Age": 61 + i, "Sex": sex, "label": ("CN", "MCI", "AD")[i % 3]})
        split = ("train", "train", "train", "validation", "test")[(i + 2) % 5]
        lists[split].append(name)
        truth.add((person, "ses-1"), has, {NO_PET: not has, UNKNOWN: not sex})
        if has and sex:
            truth.split[person] = split
    info = folder / "data_info"
    info.mkdir()
    (info / "data_info.csv").write_text(pd.DataFrame(rows).assign(Note="naïve").to_csv(index=False), "latin-1")
    for split, names in lists.items():
        (info / f"{split}.txt").write_text("\n".join(names) + "\n")
    if heads:
        truth.cut(folder / "data" / "whole_Tau" / f"{participant(4)}.nii")
    return truth
