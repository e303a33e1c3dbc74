"""One MRI in, both PETs out: in MNI space and in the MRI's own, with their regional SUVR and a picture.

A T1 is brought onto the model's grid (`preprocessing.volumes`), several samples are drawn, and their mean goes back to
the T1's voxels by the inverse of the same affine, interpolated once. Nothing written here holds a date or a duration:
the same scan, model, prompt and seed give the same bytes.

The spread over samples is neither written nor drawn, and no amyloid or tau status is derived from the PETs. The spread
was never shown to be an error: uncalibrated, its nominal 90 % interval holds far fewer real voxels, and calibrated it
told no more of the error than a map of the average error (notebook 14). A status would need a threshold, calibrated on
the model's cohort, that tells people apart better than their age and sex do (Table 4).
"""

from __future__ import annotations

import csv
import json
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from resdm.batch import TRACERS
from resdm.checkpoint import ModelCard, load_card
from resdm.cpu_runtime import set_up
from resdm.io import atomic, sha256, write_csv, write_json
from resdm.settings import check_person
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.prediction import LABELS, Model, bids_prefix, check_phantom, sampling_steps, synthesise_mri
from resdm_suite.evaluation.image_quality import read_volume
from resdm_suite.evaluation.suvr import regional_means, to_suvr
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.registration import Scan, resample
from resdm_suite.preprocessing.volumes import preprocess_mri
from resdm_suite.reporting.provenance import provenance, versions
from resdm_suite.reporting.slices import scan_montage
from resdm_suite.reporting.style import save_figure

SAMPLES = 4
"""Syntheses of one MRI by default: their mean is the PET."""

_GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


class ScanError(ValueError):
    """A table of scans that cannot be used, or rows of it that failed: names file and line."""


# ── one scan ──────────────────────────────────────────────────────────────────────────────────────


def synthesise_scan(
    t1w: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    age: float | None = None,
    sex: str | None = None,
    samples: int = SAMPLES,
    seed: int | None = None,
    steps: int | None = None,
    allow_phantom_model: bool = False,
    progress: bool = False,
) -> dict[str, Path]:
    """Both PETs of one person from a T1-weighted MRI in its native space.

    Parameters
    ----------
    t1w : path
        NIfTI, brain only or whole head.
    model : path
        A model folder; the MRI is preprocessed with the settings that the model was trained with.
    out : path
    age, sex
        What the prompt says; left out where ``None``.
    samples : int
        Syntheses; the PETs are their mean. The first is that of ``samples=1``.
    seed, steps : int, optional
        The model's own by default.
    allow_phantom_model : bool
        See `resdm_suite.apps.prediction.synthesise_mri`.
    progress : bool
        Show a bar.

    Returns
    -------
    dict of str to Path
        ``amyloid``, ``tau`` (intensities) and ``mri`` in MNI152 space; ``amyloid_native``, ``tau_native`` (SUVR) with
        shape, affine and orientation codes of ``t1w``; a sidecar beside each PET. ``suvr``: CSV, a row a tracer and
        region; ``picture``: PNG; ``record``: JSON, written last.

    Raises
    ------
    SynthesisError, CheckpointError
        A phantom-trained model without leave; a model folder that cannot be used.
    VolumeError, FileNotFoundError
        An MRI that cannot be used, or is none.
    ValueError
        An impossible age or sex, or less than one sample.
    """
    _check(age, sex, samples)
    card = load_card(model)
    check_phantom(card, allow_phantom_model)
    if not Path(t1w).is_file():
        raise FileNotFoundError(f"{t1w}: no such MRI")
    request = _settings(card, seed, steps, samples)
    return _synthesise(Path(t1w), Model.load(model), Path(out), bids_prefix(t1w), age, sex, request, progress)


def _check(age: float | None, sex: str | None, samples: int, where: str = "prompt") -> None:
    check_person(age, sex, where)
    if samples < 1:
        raise ValueError(f"samples: {samples}; expected at least 1")


def _settings(card: ModelCard, seed: int | None, steps: int | None, samples: int) -> dict[str, Any]:
    """What is asked of the sampler, with the model's own values where nothing is asked."""
    return {
        "seed": card.config.seed if seed is None else seed,
        "steps": sampling_steps(card, steps),
        "samples": samples,
    }


def _synthesise(
    t1w: Path,
    model: Model,
    out: Path,
    prefix: str,
    age: float | None,
    sex: str | None,
    request: dict[str, Any],
    progress: bool,
) -> dict[str, Path]:
    """`synthesise_scan` with a loaded model; whatever the model is, leave was given."""
    card, samples = model.card, request["samples"]
    record_path = out / f"{prefix}_desc-synth_record.json"
    record_path.unlink(missing_ok=True)
    set_up(card.config.training)
    with tqdm(total=samples + 2, desc=f"{prefix} registration", unit="step", disable=not progress) as bar:
        mri, info = preprocess_mri(t1w, card.config)
        bar.update()
        bar.set_description(f"{prefix} samples")
        source: dict[str, Any] = {"file": t1w.name, "sha256": sha256(t1w), **info, "versions": versions()}
        files = synthesise_mri(
            model, mri, out, age=age, sex=sex, prefix=prefix, source=source, allow_phantom_model=True,
            each=lambda *_: bar.update(), **request,
        )  # fmt: skip
        bar.set_description(f"{prefix} files")
        files |= _write_native(files, t1w, np.array(info["transform"]), model, prefix)
        volumes = {tracer: read_volume(files[tracer], model.grid) for tracer in TRACERS}
        if _keeps_suvr(card):
            table = suvr_table(volumes, card, samples)
            files["suvr"] = write_csv(out / f"{prefix}_desc-synth_suvr.csv", table, "%.6g")
        said = ", ".join([f"{age:g} years" if age is not None else "no age", sex or "no sex"])
        picture = scan_montage(
            mri,
            volumes,
            model.grid,
            card.config.preprocess.suvr_range,
            notice=card.notice,
            title=f"{prefix}: synthetic PET by {card.name}",
            detail=f"Prompt: {said}; mean of {samples} sample{'s' * (samples > 1)}, in MNI space.",
        )
        record = provenance(card.config, [t1w, files["mri"]])
        made = save_figure(picture, out / f"{prefix}_desc-synth_qc", record | {"notice": card.notice})
        files["picture"] = next(path for path in made if path.suffix == ".png")
        bar.update()
    names = {what: path.name for what, path in files.items()}
    write_json(record_path, _request(t1w, card, age, sex, request) | {"files": names})
    return files | {"record": record_path}


def _keeps_suvr(card: ModelCard) -> bool:
    return card.config.preprocess.intensity == "fixed"


def suvr_table(pets: Mapping[str, np.ndarray], card: ModelCard, samples: int) -> pd.DataFrame:
    """Regional SUVR of both PETs.

    Parameters
    ----------
    pets : mapping of tracer to ndarray (X, Y, Z)
        Mean over samples on the model's grid, intensities in [0, 1].
    card : ModelCard
    samples : int

    Returns
    -------
    DataFrame
        tracer, label, region, mean (SUVR), samples, notice.
    """
    grid, ranges = Grid.of(card.config.preprocess.grid), card.config.preprocess.suvr_range
    rows = [
        {"tracer": tracer, "label": LABELS[tracer], "region": region, "mean": mean, "samples": samples}
        for tracer in TRACERS
        for region, mean in regional_means(to_suvr(pets[tracer], ranges[tracer]), grid, tracer).items()
    ]
    return pd.DataFrame(rows).assign(notice=card.notice)


# ── back to the MRI's own space ───────────────────────────────────────────────────────────────────


def _write_native(
    files: dict[str, Path], t1w: Path, mni_to_t1: np.ndarray, model: Model, prefix: str
) -> dict[str, Path]:
    """The PETs on the voxels of the T1, in SUVR where the model keeps it."""
    written = {}
    for tracer in TRACERS:
        volume = read_volume(files[tracer], model.grid)
        if _keeps_suvr(model.card):
            volume = to_suvr(volume, model.card.config.preprocess.suvr_range[tracer])
            if model.card.config.preprocess.mask:
                volume = np.where(mni_map("brain", model.grid), volume, 0)
        image = to_native(volume, model.grid, mni_to_t1, t1w)
        image.header["descrip"] = model.card.notice.encode("ascii", "replace")[:79]
        path = files[tracer].with_name(files[tracer].name.replace("_space-MNI152_", "_space-T1w_"))
        with atomic(path) as temporary:
            nib.save(image, temporary)
        sidecar = json.loads(sidecar_path(files[tracer]).read_text(encoding="utf-8"))
        units = "SUVR" if _keeps_suvr(model.card) else "intensity in [0, 1]: the model's cohort was not scaled by SUVR"
        sidecar |= {"units": units, "space": "T1w", "interpolation": "linear, once, from the model's grid"}
        write_json(sidecar_path(path), sidecar)
        written[f"{tracer}_native"] = path
    return written


def to_native(volume: np.ndarray, grid: Grid, mni_to_t1: np.ndarray, t1w: str | Path) -> nib.Nifti1Image:
    """A volume in MNI space on the voxels of a T1.

    Parameters
    ----------
    volume : ndarray (X, Y, Z)
        On ``grid``.
    grid : Grid
    mni_to_t1 : ndarray (4, 4)
        MNI mm → T1 mm, see `resdm_suite.preprocessing.registration`.
    t1w : path
        The T1.

    Returns
    -------
    Nifti1Image
        float32, zero outside the grid; shape, affine, sform and qform with their codes are those of ``t1w``. Its other
        header fields and extensions, which may tell who the person is, are left behind.
    """
    image = nib.load(t1w)
    shape = image.shape[:3]
    data = resample(Scan(np.asarray(volume, np.float32), grid.affine), image.affine, shape, np.linalg.inv(mni_to_t1))
    if not isinstance(image, nib.Nifti1Pair):  # another format has one affine, in scanner space
        return nib.Nifti1Image(data, image.affine)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    for field in _GEOMETRY:
        header[field] = image.header[field]
    return nib.Nifti1Image(data, image.affine, header)


# ── many scans ────────────────────────────────────────────────────────────────────────────────────


def synthesise_scans(
    table: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    samples: int = SAMPLES,
    seed: int | None = None,
    steps: int | None = None,
    allow_phantom_model: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """`synthesise_scan` of every row of a table; a row that fails does not keep the others from being done.

    Parameters
    ----------
    table : path
        CSV with columns ``person`` (``sub-…``) and ``t1w`` (relative paths start at the table), and where known
        ``session`` (``ses-…``), ``age`` and ``sex``. Other columns are not read, so a manifest of the suite will do.
    model, samples, seed, steps, allow_phantom_model, progress
        As of `synthesise_scan`.
    out : path
        ``<person>/<session>/pet/`` below it take the files. What is there already, from the same scan, model, prompt,
        seed and samples, is kept.

    Returns
    -------
    DataFrame
        person, session, t1w, status (``done``, ``kept``, ``failed``), message (why it failed), record (path).

    Raises
    ------
    ScanError
        A table that cannot be read as one; a row's own fault only fails the row.
    """
    _check(None, None, samples)
    card = load_card(model)
    check_phantom(card, allow_phantom_model)
    table, out = Path(table), Path(out)
    rows = _read_table(table)
    request = _settings(card, seed, steps, samples)
    loaded, results = None, []
    for line, row in tqdm(rows, desc="scans", unit="scan", disable=not progress):
        person, session, t1w = row["person"], row.get("session", ""), Path(table.parent, row["t1w"])
        prefix = "_".join(filter(None, [person, session]))
        folder = Path(out, *filter(None, [person, session]), "pet")
        result = {"person": person, "session": session, "t1w": str(t1w), "status": "failed", "message": ""}
        result["record"] = str(folder / f"{prefix}_desc-synth_record.json")
        results.append(result)
        try:
            age, sex = _prompt(row, f"{table}, line {line}")
            if not t1w.is_file():
                raise FileNotFoundError(f"{table}, line {line}: {t1w}: no such MRI")
            if _is_done(Path(result["record"]), _request(t1w, card, age, sex, request)):
                result["status"] = "kept"
                continue
            loaded = loaded or Model.load(model)
            _synthesise(t1w, loaded, folder, prefix, age, sex, request, progress)
            result["status"] = "done"
        except Exception as error:  # whatever it was, it is this row's
            result["message"] = f"{type(error).__name__}: {error}"
    write_json(
        out / "dataset_description.json",
        {
            "Name": f"Synthetic PET ({card.notice})",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "resdm synthesise"}],
        },
    )
    return pd.DataFrame(results)


def _read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with their line numbers, cells stripped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of scans")
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScanError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 text") from None
    missing = [name for name in ("person", "t1w") if name not in header]
    if missing:
        raise ScanError(
            f"{path}: no column {' and no column '.join(missing)}; found {', '.join(header) or 'nothing'}, expected "
            "person, t1w and, where known, session, age, sex"
        )
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows:
        who = row["person"], row.get("session", "")
        if not re.fullmatch("sub-[a-zA-Z0-9]+", who[0]) or not re.fullmatch("(ses-[a-zA-Z0-9]+)?", who[1]):
            raise ScanError(
                f"{path}, line {line}: person {who[0]!r}, session {who[1]!r}; expected sub-<letters and digits>, and "
                "ses-<letters and digits> or nothing"
            )
        if who in seen:
            raise ScanError(f"{path}, line {line}: {' '.join(who).strip()} stands on line {seen[who]} already")
        seen[who] = line
    if not rows:
        raise ScanError(f"{path}: no row; expected one a scan")
    return rows


def _prompt(row: dict[str, str], where: str) -> tuple[float | None, str | None]:
    text, sex = row.get("age", ""), row.get("sex", "") or None
    try:
        age = float(text) if text else None
    except ValueError:
        raise ScanError(f"{where}: age {text!r} is no number of years; leave the cell empty where unknown") from None
    check_person(age, sex, where)
    return age, sex


def _request(t1w: Path, card: ModelCard, age: float | None, sex: str | None, request: dict[str, Any]) -> dict[str, Any]:
    """All that the outputs of a scan depend on."""
    prompt = {"age": age, "sex": sex}
    scan = {"file": t1w.name, "sha256": sha256(t1w)}
    return {"notice": card.notice, "model": card.digest, "scan": scan, "prompt": prompt, **request}


def _is_done(record: Path, request: dict[str, Any]) -> bool:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        files = known.pop("files")
    except (OSError, ValueError, KeyError):
        return False
    return known == request and all((record.parent / name).is_file() for name in files.values())


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
