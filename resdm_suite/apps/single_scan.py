"""One MRI to both PETs: in MNI space and on the MRI's native voxels, with regional SUVR and a picture.

A T1 is registered to the model's grid (`preprocessing.t1`) and several samples are drawn. Their mean returns to
the T1's voxels by the inverse of the same affine, in one interpolation. No file holds a date or a duration: the same
scan, model, prompt and seed give the same bytes.

The spread over samples is not written. It is no error: uncalibrated, its nominal 90 % interval holds far fewer real
values; calibrated, it adds little to the average error (notebook 14). The intervals of the regional SUVR are that
average error of validation people, where `resdm sample` has stored it with the model. A status is stated only where
the whole interval lies on one side of the cohort's cut-off.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from resdm.attributes import Known, check_attributes, phrase
from resdm.cpu_runtime import set_up
from resdm.io import remove, sha256, stored_json, write_csv, write_json
from resdm.settings import check_person, fields_of, further
from resdm_suite.anatomy import Grid
from resdm_suite.apps.model_folder import ModelCard, load_card
from resdm_suite.apps.prediction import (
    Model,
    bids_prefix,
    check_phantom,
    sampling_steps,
    save_image,
    synthesise_mri,
)
from resdm_suite.cohorts.readers.dicom import convert_t1w
from resdm_suite.cohorts.tables import read_table, to_sex
from resdm_suite.evaluation.atlas import CENTILOID, centiloid
from resdm_suite.evaluation.fidelity import UNCALIBRATED
from resdm_suite.evaluation.intervals import LEVEL, read_calibration, status
from resdm_suite.evaluation.suvr import regional_means, to_suvr
from resdm_suite.paths import (
    CALIBRATION,
    DESCRIPTION,
    INPUT_CHECK,
    SPACE,
    bids_uri,
    session_folder,
    sidecar_path,
    write_description,
)
from resdm_suite.preprocessing import input_check
from resdm_suite.preprocessing.resampling import Scan, resample
from resdm_suite.preprocessing.t1 import preprocess_mri
from resdm_suite.records import locked
from resdm_suite.reporting.provenance import provenance, versions
from resdm_suite.reporting.slices import scan_montage
from resdm_suite.reporting.style import save_figure

SAMPLES = 4
"""Default number of samples of one MRI; the PET is their mean."""


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
    attributes: Mapping[str, str | float] | None = None,
    progress: bool = False,
    **sampling: Any,
) -> dict[str, Path]:
    """Both PETs of one person from a T1-weighted MRI in its native space; of a tracer without training scans none.

    Parameters
    ----------
    t1w : path
        NIfTI, brain only or whole head; or a folder of one DICOM series, which is converted into
        ``<out>/sourcedata/raw`` (`resdm_suite.cohorts.readers.dicom`).
    model : path
        A model folder; the MRI is preprocessed with the settings of the model's training.
    out : path
        Gets ``anat/``, ``pet/`` and the other files below ``sub-<label>/[ses-<label>/]``, as BIDS-Derivatives.
    age, sex
        Prior information in the prompt; left out where ``None``.
    attributes : mapping, optional
        Further ones on which the model was trained, by the name of the field: a number or a category.
    progress : bool
        Show a bar.
    **sampling
        ``samples`` (int): the PETs are the mean of so many, `SAMPLES` by default; the first is that of ``samples=1``.
        ``seed``, ``steps`` (int): the model's by default. ``allow_phantom_model`` (bool): see
        `resdm_suite.apps.prediction.check_phantom`. ``trust_code`` (bool): see `resdm.load_model`. ``force`` (bool):
        whether to use a T1 that is unlike the training people's; every sidecar and the record then state this.

    Returns
    -------
    dict of str to Path
        ``amyloid``, ``tau`` and ``mri`` in MNI152 space; ``amyloid_native``, ``tau_native`` with shape, affine and
        orientation codes of ``t1w``. PETs are in SUVR; each image has a sidecar with its ``Units``. ``suvr``: CSV, one
        row per tracer and region; ``picture``: PNG; ``record``: JSON, written last.

    Raises
    ------
    ValueError, FileNotFoundError
        A model that cannot be used or is not allowed (`SynthesisError`, `CheckpointError`); an MRI that cannot be used
        (`VolumeError`) or does not exist; a T1 unlike the training people's, or ``out`` holds the PETs of another MRI
        of that name (`ScanError`); an impossible age, sex, seed or number of samples.
    """
    check_person(age, sex, "prompt")
    _, sampler, force = _prepare(model, **sampling)
    if Path(t1w).is_dir():
        with locked(Path(out), "sourcedata"):
            t1w = convert_t1w(t1w, Path(out) / "sourcedata" / "raw")
    if not Path(t1w).is_file():
        raise FileNotFoundError(f"{t1w}: no such MRI")
    t1w, loaded = Path(t1w), Model.load(model)
    prompt = {"age": age, "sex": sex} | check_attributes(attributes or {}, loaded.method.known, "prompt")
    root = next((folder for folder in t1w.parents if (folder / DESCRIPTION).is_file()), t1w.parent)
    out, prefix = Path(out), bids_prefix(t1w)
    with locked(out, prefix):
        return _synthesise(t1w, root, loaded, out, prefix, prompt, sampler, force, progress)


def _prepare(
    model: str | Path,
    samples: int = SAMPLES,
    seed: int | None = None,
    steps: int | None = None,
    allow_phantom_model: bool = False,
    trust_code: bool = False,
    force: bool = False,
) -> tuple[ModelCard, dict[str, Any], bool]:
    """The model's card, the sampler's settings with the model's values as defaults, and ``force``."""
    if samples < 1:
        raise ValueError(f"samples: {samples}; expected at least 1")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed: {seed}; expected 0 or more, below 2⁶³")
    card = load_card(model, trust_code=trust_code)
    check_phantom(card, allow_phantom_model)
    seed = card.config.seed if seed is None else seed
    return card, {"seed": seed, "steps": sampling_steps(card, steps), "samples": samples}, force


def _synthesise(
    t1w: Path, root: Path, model: Model, out: Path, prefix: str, prompt: dict[str, Any], sampler: dict[str, Any],
    force: bool, progress: bool,
) -> dict[str, Path]:  # fmt: skip
    """`synthesise_scan` with a loaded model and checked arguments; the MRI lies below ``root``."""
    card, config, samples = model.card, model.card.config, sampler["samples"]
    folder, record, inputs = session_folder(out, prefix), _record(out, prefix), _inputs(t1w, card, prompt, sampler)
    stored = _read_record(record).get("scan", inputs["scan"])
    if stored["sha256"] != inputs["scan"]["sha256"]:
        raise ScanError(
            f"{t1w}: {out} holds the PETs of another MRI under the name {prefix} (of {stored['file']}); give another "
            "--out, or a name that only this MRI has (sub-<label>_T1w.nii.gz)"
        )
    remove(record)
    set_up(config.training)
    with tqdm(total=samples + 2, desc=prefix, unit="step", disable=not progress) as bar:
        mri, info = preprocess_mri(t1w, config)
        found = _check_input(t1w, mri, info, card, force)
        outcome: dict[str, Any] = {"input_check": found}
        bar.update()
        raw = bids_uri(t1w, root, _describe(out, root, card.notice))
        source = {"file": t1w.name, "sha256": sha256(t1w), **info, "input_check": found, "versions": versions()}
        files, volumes = synthesise_mri(
            model, mri, out, age=prompt["age"], sex=prompt["sex"], **sampler, prefix=prefix, source=source, raw=raw,
            each=bar.update, more={name: prompt[name] for name in further(prompt)},
        )  # fmt: skip
        for tracer, volume in volumes.items():
            files[f"{tracer}_native"] = _write_native(files[tracer], volume, tracer, t1w, info["transform"], model, raw)
        if config.preprocess.in_suvr:
            table = _suvr_table(volumes, model, samples)
            files["suvr"] = write_csv(folder / f"{prefix}_desc-synth_suvr.csv", table, "%.6g")
            outcome["regional"] = json.loads(table.drop(columns=["samples", "notice"]).to_json(orient="records"))
        picture = scan_montage(
            mri,
            volumes,
            model.grid,
            config.preprocess,
            notice=card.notice,
            title=f"{prefix}: synthetic PET by {card.name}",
            detail=f"Prompt: {prompt_text(**prompt)}; mean of {samples} sample{'s' * (samples > 1)}, in MNI space.",
        )
        origin = provenance(config, [t1w, files["mri"]]) | {"notice": card.notice}
        images = save_figure(picture, folder / f"{prefix}_desc-synth_qc", origin)
        files["picture"] = next(path for path in images if path.suffix == ".png")
        bar.update()
    names = {what: path.relative_to(folder).as_posix() for what, path in files.items()}
    write_json(record, inputs | outcome | {"files": names})
    return files | {"record": record}


def _describe(out: Path, root: Path, notice: str) -> str:
    """Describe the data set of the outputs; the name in it of the folder below which a T1 lies."""
    with locked(out, "description"):
        links = (stored_json(out / DESCRIPTION) or {}).get("DatasetLinks", {})
        links, place = {name: os.path.abspath(out / at) for name, at in links.items()}, os.path.abspath(root)
        link = next((name for name, at in links.items() if at == place), f"raw{len(links) + 1 if links else ''}")
        write_description(out, f"Synthetic PET ({notice})", "resdm synthesise", links | {link: place})
    return link


def _record(out: Path, prefix: str) -> Path:
    return session_folder(out, prefix) / f"{prefix}_desc-synth_record.json"


def _check_input(t1w: Path, mri: np.ndarray, info: dict[str, Any], card: ModelCard, force: bool) -> dict[str, Any]:
    """Whether a preprocessed T1 is like the training people's: ``passed`` (None: unknown), and ``text`` if not.

    Raises `ScanError` for one that is not, without ``force``. A model of phantoms takes more, with the text.
    """
    check = input_check.InputCheck.read(card.folder)
    if check is None:
        text = f"not checked whether this T1 is like the training people's: {card.folder} has no {INPUT_CHECK}"
        return {"passed": None, "text": f"{text} (trained by an earlier version, or on too few people)"}
    measured = check.measure(mri, info["transform"], info["t1_correlation"])
    fault = check.fault(measured)
    text = f"this T1 is unlike the training people's: {fault}" if fault else ""
    if check.fault(measured, input_check.PHANTOM_TOLERANCE if card.phantom else 1) and not force:
        raise ScanError(f"{t1w}: {text}; give another scan, or --force: every output then states this")
    return {"passed": not fault, "text": text}


def prompt_text(age: float | None, sex: str | None, **more: float | str | None) -> str:
    """Age, sex and further attributes in words, such as "74 years, F"."""
    known = [phrase(name, value) for name, value in more.items() if value is not None]
    return ", ".join([f"{'no age' if age is None else f'{age:g} years'}", sex or "no sex", *known])


def _suvr_table(pets: dict[str, np.ndarray], model: Model, samples: int) -> pd.DataFrame:
    """Regional SUVR of mean PETs (X, Y, Z) in [0, 1], with intervals and status where the model has a calibration.

    Columns are tracer, label, region, unit, mean, low, high, status, interval (what low and high are), samples, notice.
    The ``summary`` has a status. A row of unit CL follows it where the tracer has an equation.
    """
    card, rows = model.card, []
    calibration = read_calibration(card.folder, card.digest)
    for tracer, pet in pets.items():
        label, known = card.labels[tracer], calibration.get(tracer)
        head = {"tracer": tracer, "label": label}
        cutoff = card.config.cohort.cutoff(tracer, label)
        text = "none: no calibration is stored with the model (resdm sample)"
        if known:
            text = f"{100 * LEVEL:g} %, by the errors of {known['people']} validation people"
        suvr = to_suvr(pet, card.config.preprocess.suvr_range[tracer])
        for region, mean in regional_means(suvr, model.grid, tracer).items():
            half = known["half_width"].get(region, np.nan) if known else np.nan
            ends = {"mean": mean, "low": mean - half, "high": mean + half}
            row = head | {"region": region, "unit": "SUVR", **ends, "status": "", "interval": text}
            if region == "summary" and np.isfinite(half + cutoff):
                row["status"] = status(ends["low"], ends["high"], cutoff)
            rows.append(row)
            if region == "summary" and label in CENTILOID:
                scale = {name: centiloid(value, label) for name, value in ends.items()}
                rows.append(row | scale | {"region": UNCALIBRATED, "unit": "CL", "status": ""})
    return pd.DataFrame(rows).assign(samples=samples, notice=card.notice)


# ── back to native space ──────────────────────────────────────────────────────────────────────────


def _write_native(
    mni: Path, volume: np.ndarray, tracer: str, t1w: Path, mni_to_t1: list[list[float]], model: Model, raw: str
) -> Path:
    """A PET on the voxels of the T1, in SUVR where the model's intensities allow it."""
    volume, _ = model.to_suvr(volume, tracer)
    path = mni.with_name(mni.name.replace(f"_space-{SPACE}_", "_space-T1w_"))
    save_image(path, to_native(volume, model.grid, np.array(mni_to_t1), t1w), model.card.notice)
    sidecar = json.loads(sidecar_path(mni).read_text(encoding="utf-8"))
    sidecar |= {"SpatialReference": raw, "interpolation": "linear, once, from the model's grid"}
    write_json(sidecar_path(path), sidecar)
    return path


def to_native(volume: np.ndarray, grid: Grid, mni_to_t1: np.ndarray, t1w: str | Path) -> nib.Nifti1Image:
    """A volume (X, Y, Z) on an MNI grid, resampled to the voxels of a T1.

    ``mni_to_t1`` (4, 4) maps MNI mm to T1 mm. The result is float32 and 0 outside the grid. It has the shape, affine
    and sform and qform codes of ``t1w``; other header fields and extensions, which may identify the person, are not
    copied.
    """
    image = nib.load(t1w)
    shape = image.shape[:3]
    data = resample(Scan(np.asarray(volume, np.float32), grid.affine), image.affine, shape, np.linalg.inv(mni_to_t1))
    native = nib.Nifti1Image(data, image.affine)
    if isinstance(image, nib.Nifti1Pair):  # another format has one affine, in scanner space
        for field in ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
                      "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):  # fmt: skip
            native.header[field] = image.header[field]
    return native


# ── many scans ────────────────────────────────────────────────────────────────────────────────────


def synthesise_scans(
    table: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    progress: bool = False,
    **sampling: Any,
) -> pd.DataFrame:
    """`synthesise_scan` of every row of a table; a row that fails does not stop the others.

    Parameters
    ----------
    table : path
        CSV with columns ``person`` (``sub-…``) and ``t1w`` (relative to the table), and where known ``session``
        (``ses-…``), ``age``, ``sex`` and the model's further fields. Other columns are ignored, so a manifest of the
        suite can be given.
    out : path
        Files are written below ``<person>/<session>/`` in it. Existing results of the same scan, model, prompt,
        seed and samples stay.
    model, progress, **sampling
        As of `synthesise_scan`.

    Returns
    -------
    DataFrame
        person, session, t1w, status (``done``, ``kept``, ``failed``), message (reason of a failure, or what the input
        check found), record (path).

    Raises
    ------
    ScanError
        A file that is no table of scans; a fault of one row only fails that row.
    """
    card, sampler, force = _prepare(model, **sampling)
    table, out = Path(table), Path(out)
    further_fields = further(fields_of(card.settings))
    loaded, results, rows = Model.load(model) if further_fields else None, [], _read_table(table, further_fields)
    known = loaded.method.known if loaded else {}
    root = Path(os.path.commonpath([os.path.abspath(Path(table.parent, row["t1w"]).parent) for row in rows.values()]))
    for line, row in tqdm(rows.items(), desc="scans", unit="scan", disable=not progress):
        person, session, t1w = row["person"], row["session"], Path(table.parent, row["t1w"])
        prefix = "_".join(part for part in (person, session) if part)
        record, status, message = _record(out, prefix), "failed", ""
        try:
            prompt = _prompt(row, f"{table}, line {line}", known)
            if not t1w.is_file():
                raise FileNotFoundError(f"{table}, line {line}: {t1w}: no such MRI")
            status = "kept"
            with locked(out, prefix):
                if not _is_done(record, _inputs(t1w, card, prompt, sampler), force):
                    loaded = loaded or Model.load(model)
                    _synthesise(t1w, root, loaded, out, prefix, prompt, sampler, force, progress)
                    status = "done"
            message = input_check_text(record)
        except Exception as error:  # any error belongs to this row
            status, message = "failed", f"{type(error).__name__}: {error}"
        results.append([person, session, str(t1w), status, message, str(record)])
    return pd.DataFrame(results, columns=["person", "session", "t1w", "status", "message", "record"])


def _read_table(path: Path, attributes: Sequence[str] = ()) -> dict[int, dict[str, str]]:
    """Line number → row, cells stripped; columns that are missing are empty."""
    frame, known = read_table(path), ["person", "session", "t1w", "age", "sex", *attributes]
    wrong = [f"no column {name}" for name in ("person", "t1w") if name not in frame]
    wrong += [f"two columns {name}" for name in known if list(frame).count(name) > 1]
    if wrong:
        raise ScanError(
            f"{path}: {' and '.join(wrong)}; found {', '.join(frame)}, expected person, t1w and, where known, session, "
            "age, sex"
        )
    frame = frame.reindex(columns=known, fill_value="")
    for line, (person, session) in frame[["person", "session"]].iterrows():
        if not re.fullmatch("sub-[a-zA-Z0-9]+", person) or not re.fullmatch("(ses-[a-zA-Z0-9]+)?", session):
            raise ScanError(
                f"{path}, line {line}: person {person!r}, session {session!r}; expected sub-<letters and digits>, and "
                "ses-<letters and digits> or nothing"
            )
    repeated = frame[frame.duplicated(["person", "session"])]
    if len(repeated):
        line, person, session = repeated.index[0], *repeated.iloc[0][["person", "session"]]
        first = frame.index[(frame["person"] == person) & (frame["session"] == session)][0]
        raise ScanError(f"{path}, line {line}: {f'{person} {session}'.strip()} is also on line {first}")
    if frame.empty:
        raise ScanError(f"{path}: no row; expected one per scan")
    return frame.to_dict("index")


def _prompt(row: dict[str, str], where: str, known: Known) -> dict[str, Any]:
    try:
        age, sex = float(row["age"]) if row["age"] else None, to_sex(row["sex"]) or row["sex"] or None
    except ValueError:
        raise ScanError(
            f"{where}: age {row['age']!r} is no number of years; leave the cell empty where unknown"
        ) from None
    check_person(age, sex, where)
    stated = {name: row[name] for name in known if row[name]}
    return {"age": age, "sex": sex} | check_attributes(stated, known, where)


def _inputs(t1w: Path, card: ModelCard, prompt: dict[str, Any], sampler: dict[str, Any]) -> dict[str, Any]:
    """All inputs on which the files of a scan depend."""
    scan = {"file": t1w.name, "sha256": sha256(t1w)}
    calibration = card.folder / CALIBRATION
    known = {"calibration": sha256(calibration)} if calibration.is_file() else {}
    return {"notice": card.notice, "model": card.digest, **known, "scan": scan, "prompt": prompt, **sampler}


def _read_record(record: Path) -> dict[str, Any]:
    """The record of a finished scan; empty where there is none that can be read."""
    stored = stored_json(record) or {}
    scan, files = stored.get("scan"), stored.get("files")
    whole = isinstance(scan, dict) and {"file", "sha256"} <= scan.keys() and isinstance(files, dict)
    return stored if whole else {}


def input_check_text(record: Path) -> str:
    """What the input check found of a finished scan, by its record; empty where it passed."""
    return _read_record(record).get("input_check", {}).get("text", "")


def _is_done(record: Path, inputs: dict[str, Any], force: bool) -> bool:
    stored = _read_record(record)
    files, found, _ = (stored.pop(name, {}) for name in ("files", "input_check", "regional"))
    allowed = force or found.get("passed") is not False
    return allowed and stored == inputs and all((record.parent / name).is_file() for name in files.values())
