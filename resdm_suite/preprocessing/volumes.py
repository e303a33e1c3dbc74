"""Scans of the manifest → volumes on the profile's grid, with intensities in [0, 1], and one array of all of them.

For one session: T1 → MNI affine and PET → T1 rigid are composed, and every scan is interpolated once (`registration`).
The T1's bias field is removed and its bright end scaled to 1 (`t1`). Each PET is divided by the mean of its reference
region, and a fixed range of SUVR is mapped to [0, 1] (`preprocessing.suvr`). All voxels outside the MNI brain are set
to 0. The reference region is measured on the profile's grid, where every later stage measures too, so its mean is 1
there. A session whose ``space`` is of MNI152 is resampled by its headers, without registration, and a scan with a
transform (``t1w_transform``, …) by that. Spaces of MNI152 are taken for one, mm by mm.

Finished sessions are not repeated: each leaves a record with the digests of its inputs and settings, written last. A
killed call loses the sessions in work only. ``excluded.csv`` lists the sessions of the manifest that are not in
``index.csv``, with the reason; ``notes.txt`` what is unsure of the scans that are used.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs
from nibabel.affines import apply_affine
from tqdm.auto import tqdm

from resdm.io import atomic, remove, sha256, stored_json, write_json, write_text
from resdm.settings import TRACERS, to_dict
from resdm.timing import forecaster
from resdm_suite.anatomy import Grid, brain_points, mni_map, regions
from resdm_suite.cohorts.leakage import check_shared_scans
from resdm_suite.cohorts.manifest import IDENTITY, ManifestError, read_manifest, status_by_cutoff
from resdm_suite.cohorts.tables import read_sidecar
from resdm_suite.paths import NOT_ACQUIRED, bids_fields, bids_uri, image_path, sidecar_path, stem, write_description
from resdm_suite.preprocessing.frames import seconds
from resdm_suite.preprocessing.measures import blur, measure_flags, shared_information
from resdm_suite.preprocessing.resampling import Scan
from resdm_suite.preprocessing.scans import VolumeError, read_scan, read_transform
from resdm_suite.preprocessing.suvr import pet_on_grid, units
from resdm_suite.preprocessing.t1 import T1_UNITS, brain_only, check_contrast, read_t1, registration_errors, t1_on_grid
from resdm_suite.profiles import MEASURED, Config
from resdm_suite.records import alone, check_folder, read_csv, read_record, state, unchanged, write_record

REVISION = 7
"""Raise it whenever the same scans and settings give other volumes, so that old ones are made again."""

_FLOW = ["step", "people", "sessions"]
_EXCLUDED = ["person", "session", "split", "step", "reason"]

Row = dict[str, Any]


@alone("preprocess")
def preprocess(config: Config, *, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Preprocess every unfinished session of the manifest, and pack all sessions into ``cohort.npy``.

    All unfinished scans are read and checked before the first is processed. A session that fails later (a PET without
    cerebellum) stops no other: the failures are reported together at the end.

    Parameters
    ----------
    config : Config
        Reads ``manifest.csv``, writes below ``volumes/``. ``cohort.skip_unreadable`` and ``cohort.exclude_flagged``
        leave sessions out, with the reason in ``excluded.csv``; without them all stay.
    jobs : int
        Processes, one thread each; -1 for one per core. The volumes do not depend on it.
    progress : bool
        Show bars.

    Returns
    -------
    DataFrame
        ``index.csv``: one row per session, in the order of ``cohort.npy``.

    Raises
    ------
    ManifestError, LeakageError
        A manifest that cannot be used, or one scan of two people.
    RecordError
        A file of the phantoms that is not as `resdm phantom` wrote it.
    VolumeError
        Scans that cannot be used, each named; or every session left out.
    """
    check_folder(config.source_root)
    frame = read_manifest(config.manifest, attributes=config.attributes)
    if (frame["split"] == "").any():
        row = frame[frame["split"] == ""].iloc[0]
        raise ManifestError(
            f"{config.manifest}: {row['person']} {row['session']} has no split; make the manifest again with "
            "`resdm manifest`, or fill the column"
        )
    regions(Grid.of(config.preprocess.grid))  # a grid without a reference region is refused now
    rows = frame.to_dict("records")
    settings = _settings_digest(config)
    todo = [row for row in rows if _current_record(config, row, settings) is None]
    problems: dict[tuple[str, str], list[str]] = {}

    def run(work: Callable[[Config, Row], list[str]], label: str) -> None:
        pending = [row for row in todo if _key(row) not in problems]
        workers = min(effective_n_jobs(jobs), max(len(pending), 1))
        forecast = forecaster(label, len(pending), "sessions", warm=workers)
        results = Parallel(n_jobs=workers, return_as="generator")(delayed(work)(config, row) for row in pending)
        bar = tqdm(results, total=len(pending), desc=label, unit="session", disable=not progress or not pending)
        for number, (row, failures) in enumerate(zip(pending, bar, strict=True), start=1):
            if progress:
                forecast(number)
            if failures:
                problems[_key(row)] = failures
        if problems and not config.cohort.skip_unreadable:
            lines = [line for _, failures in sorted(problems.items()) for line in failures]
            remedy = "; correct these, or leave their sessions out by cohort.skip_unreadable: true"
            raise VolumeError("\n".join(lines) + (f"\n{len(lines)} scans{remedy}" if len(lines) > 1 else ""))

    run(_check_session, "checks")
    if todo:
        usable = frame[[_key(row) not in problems for row in rows]]
        check_shared_scans(usable, str(config.manifest), contents=True)
    run(_try_session, "preprocessing")
    records = [None if _key(row) in problems else session_record(config, row) for row in rows]
    return _pack(config, frame, records, problems)


def cohort_flow(config: Config) -> pd.DataFrame:
    """``flow.csv`` of the manifest, and how many of its people came through preprocessing.

    Returns
    -------
    DataFrame
        step, people, sessions. After the source's steps: ``scans usable`` and ``passes QC``, those without a flag.
        Flagged people stay in the cohort unless ``cohort.exclude_flagged``.

    Raises
    ------
    FileNotFoundError
        The cohort is not preprocessed.
    """
    path, excluded_path = config.work / "flow.csv", config.volumes / "excluded.csv"
    text = {"person": str, "session": str}
    included = read_csv(require_index(config), dtype=text)
    if path.is_file():
        flow = read_csv(path)
    else:  # a manifest written by hand
        manifest = read_manifest(config.manifest, files=False, attributes=config.attributes)
        flow = pd.DataFrame([("kept", manifest["person"].nunique(), len(manifest))], columns=_FLOW)
    excluded = read_csv(excluded_path, dtype=text) if excluded_path.is_file() else pd.DataFrame(columns=_EXCLUDED)
    usable = pd.concat([included, excluded[excluded["step"] == "flagged"]])
    steps = {"scans usable": usable, "passes QC": included[included["flags"].isna()]}
    rows = [(step, part["person"].nunique(), len(part)) for step, part in steps.items()]
    return pd.concat([flow, pd.DataFrame(rows, columns=_FLOW)], ignore_index=True)


def require_index(config: Config) -> Path:
    """``index.csv``; `FileNotFoundError` if the cohort is not preprocessed."""
    index = config.volumes / "index.csv"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no preprocessed cohort; run `resdm preprocess` first")
    return index


# ── one session ───────────────────────────────────────────────────────────────────────────────────


def session_scans(row: Row) -> dict[str, str]:
    """The session's files in the manifest: ``t1w`` and tracers."""
    return {what: row[what] for what in ("t1w", *TRACERS) if row[what]}


def _transforms(row: Row) -> dict[str, str]:
    """The session's given transforms, by scan: files, or `IDENTITY`."""
    return {what: given for what in session_scans(row) if (given := row[f"{what}_transform"])}


def _inputs(row: Row) -> dict[str, str]:
    """All files from which the session's volumes are made."""
    files = {f"{what}_transform": given for what, given in _transforms(row).items() if given != IDENTITY}
    return session_scans(row) | files


def record_path(config: Config, row: Row) -> Path:
    """The record of a finished session."""
    return config.volumes / row["person"] / row["session"] / f"{row['person']}_{row['session']}_desc-preproc.json"


def session_record(config: Config, row: Row) -> dict[str, Any]:
    """What preprocessing recorded of a session: settings, inputs, outputs, measures."""
    return json.loads(record_path(config, row).read_text(encoding="utf-8"))


def _key(row: Row) -> tuple[str, str]:
    return row["person"], row["session"]


def _settings_digest(config: Config) -> str:
    return f"{config.digest('preprocess')}-{REVISION}"


def _outputs(row: Row) -> dict[str, str]:
    """The session's volumes, relative to ``volumes/``."""
    labels = {"t1w": ""} | {tracer: row[f"{tracer}_tracer"] for tracer in TRACERS if row[tracer]}
    name = f"{row['person']}_{row['session']}"
    return {what: image_path("", name, "preproc", label).as_posix() for what, label in labels.items()}


def _current_record(config: Config, row: Row, settings: str) -> dict[str, Any] | None:
    """The session's record, if its volumes were made from these scans under these settings (their digest)."""
    scans = _inputs(row)
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # no record, or a damaged one
        record = session_record(config, row)
        wanted = {"settings": settings, "outputs": _outputs(row), "space": row["space"], "transforms": _transforms(row)}
        stored = {"space": "", "transforms": {}} | record
        same = wanted.items() <= stored.items() and record["inputs"].keys() == scans.keys()
        known = {scans[what]: record["inputs"][what] for what in scans} if same else {}
        known |= {config.volumes / file: {"sha256": digest} for file, digest in record.get("files", {}).items()}
        since = record_path(config, row).stat().st_mtime_ns
        made = all((config.volumes / file).is_file() for file in record["outputs"].values())
        if same and made and all(unchanged(path, value, since) for path, value in known.items()):
            return record
    return None


def _check_session(config: Config, row: Row) -> list[str]:
    """Problems of a session's scans that reading them shows."""
    problems, digests = [], {}
    for what, path in session_scans(row).items():
        if stem(path).endswith("_pet" if what == "t1w" else "_T1w"):
            problems.append(f"{path}: by its name no {what} scan; put each scan in the correct column of the manifest")
            continue
        try:
            _read(row, what)
        except VolumeError as error:
            problems.append(str(error))
            continue
        twin = digests.setdefault(sha256(path), what)
        if twin != what:
            problems.append(f"{path}: the same bytes as the session's {twin}; correct the path in column {what}")
    for what in _transforms(row):
        try:
            _given(row, what, brain_points())
        except VolumeError as error:
            problems.append(str(error))
    return problems


def _given(row: Row, what: str, points: np.ndarray) -> tuple[np.ndarray | None, dict[str, str]]:
    """The matrix of a scan that is not registered, from ``points`` (N, 3) of the T1 or MNI152, and how it is known.

    None and empty for a scan to be registered.
    """
    if row["space"]:
        return np.eye(4), {"registration": f"none: in {row['space']}"}
    file = _transforms(row).get(what)
    if file is None or file == IDENTITY:
        return (np.eye(4), {"registration": "given: lies on the T1"}) if file else (None, {})
    matrix, left_out = read_transform(file, points)
    part = f", its affine part ({left_out:.1f} mm left out)" if left_out >= 0.05 else ""
    return matrix, {"registration": f"given transform {Path(file).name}{part}"}


def _read(row: Row, what: str) -> Scan:
    """One scan of a session: ``t1w``, or a tracer with its frames averaged."""
    return read_t1(row[what]) if what == "t1w" else read_scan(row[what], frames=True, tracer=row[f"{what}_tracer"])


def _try_session(config: Config, row: Row) -> list[str]:
    """Preprocess a session; its problem if that fails."""
    try:
        _write_session(config, row)
    except VolumeError as error:
        return [str(error)]
    return []


def _write_session(config: Config, row: Row) -> None:
    """Preprocess one session and write its volumes, sidecars and, last, its record."""
    settings, digest, grid = config.preprocess, _settings_digest(config), Grid.of(config.preprocess.grid)
    inputs = {what: state(path) | {"mtime_ns": Path(path).stat().st_mtime_ns} for what, path in _inputs(row).items()}
    scans = {what: _read(row, what) for what in session_scans(row)}
    scans["t1w"] = brain_only(scans["t1w"], settings, row["t1w"])
    outputs = _outputs(row)
    remove(record_path(config, row))

    def write(what: str, array: np.ndarray, transform: np.ndarray, similarity: float, sidecar: dict[str, Any]) -> None:
        path = config.volumes / outputs[what]
        with atomic(path) as temporary:
            nib.save(grid.image(array.astype(np.float32)), temporary)
        source = {"file": Path(row[what]).name, "sha256": inputs[what]["sha256"]}
        label = "" if what == "t1w" else row[f"{what}_tracer"]
        unit, sources = units(settings, what) if label else T1_UNITS, [bids_uri(row[what], config.source_root, "raw")]
        head = bids_fields(unit, settings.mask, label, sources=sources)
        head |= _acquisition(row[what], scans[what]) if label else {}
        head |= {"source": source, "transform": transform.tolist(), "settings": digest}
        head |= {"registration_similarity": similarity} | ({"registered": False} if "registration" in sidecar else {})
        write_json(sidecar_path(path), head | sidecar)

    brain = mni_map("brain", grid)
    given, words = _given(row, "t1w", brain_points())
    t1, mni_to_t1, sidecar = t1_on_grid(scans["t1w"], settings, row["t1w"], row["space"], given)
    measured = {"t1_correlation": sidecar.pop("t1_correlation")}
    check_contrast(scans["t1w"], mni_to_t1, measured["t1_correlation"], row["t1w"])
    write("t1w", t1, mni_to_t1, measured["t1_correlation"], sidecar | words)
    blurred = blur(t1, grid)[brain]
    for tracer in [tracer for tracer in TRACERS if tracer in scans]:
        t1_to_pet, words = _given(row, tracer, apply_affine(mni_to_t1, brain_points()))
        if t1_to_pet is None:
            from resdm_suite.preprocessing.registration import register_rigid  # SimpleITK: reading volumes needs none

            with registration_errors(row[tracer]):
                t1_to_pet = register_rigid(scans["t1w"], scans[tracer], mni_to_t1, settings.registration_mm)
        mni_to_pet = t1_to_pet @ mni_to_t1
        array, sidecar, values = pet_on_grid(scans[tracer], mni_to_pet, tracer, settings, row[tracer])
        values["similarity"] = shared_information(blurred, blur(array, grid)[brain])
        sidecar |= {"tracer": row[f"{tracer}_tracer"], "t1_to_pet": t1_to_pet.tolist()} | words
        write(tracer, array, mni_to_pet, values["similarity"], sidecar)
        measured |= {f"{tracer}_{name}": value for name, value in values.items()}
    volumes = [config.volumes / name for name in outputs.values()]
    written = {*volumes, *map(sidecar_path, volumes)}
    for stale in set(record_path(config, row).parent.glob("*/*_desc-preproc_*")) - written:
        stale.unlink()  # of a PET that the manifest no longer has
    record = {"settings": digest, "inputs": inputs, "outputs": outputs, "measured": measured}
    record["files"] = {path.relative_to(config.volumes).as_posix(): sha256(path) for path in sorted(written)}
    record |= {name: value for name, value in (("space", row["space"]), ("transforms", _transforms(row))) if value}
    notes = [f"{row[what]}: {scan.frames['note']}" for what, scan in scans.items() if "note" in scan.frames]
    write_json(record_path(config, row), record | ({"notes": notes} if notes else {}))


def _acquisition(path: str, scan: Scan) -> dict[str, Any]:
    """What the sidecar of a PET states of its acquisition, with the time of the frames that are averaged."""
    stated = read_sidecar(path) or {}
    entries = {key: stated[key] for key in ("TracerName", "TracerRadionuclide", *NOT_ACQUIRED) if key in stated}
    if span := scan.frames.get("minutes_after_injection"):
        injection = float(np.nan_to_num(seconds(stated, "InjectionStart")))
        if entries.get("InjectionStart", injection) != injection:  # in milliseconds, or no number
            entries["InjectionStart"] = injection
        entries["FrameTimesStart"] = [injection + 60 * span[0]]
        entries["FrameDuration"] = [60 * (span[1] - span[0])]
    return entries


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


def _index(config: Config, frame: pd.DataFrame, records: list[dict[str, Any]]) -> pd.DataFrame:
    """``index.csv`` from the manifest and the measurements."""
    lines = []
    for row, record in zip(frame.to_dict("records"), records, strict=True):
        measured, outputs = record["measured"], record["outputs"]
        line = {name: row[name] for name in ("person", "session", "split", "age", "sex", "diagnosis")}
        line |= {f"present_{tracer}": int(tracer in outputs) for tracer in TRACERS}
        line |= {f"{tracer}_tracer": row[f"{tracer}_tracer"] if tracer in outputs else "" for tracer in TRACERS}
        for tracer in TRACERS:
            given = row[f"{tracer}_suvr"]
            line[f"{tracer}_suvr"] = measured.get(f"{tracer}_suvr", np.nan) if np.isnan(given) else given
        for tracer in TRACERS:
            status = status_by_cutoff(line[f"{tracer}_suvr"], tracer, row[f"{tracer}_tracer"], config.cohort)
            given = row[f"{tracer}_status"]
            line[f"{tracer}_status"] = status if pd.isna(given) else given
        line |= {what: outputs.get(what, "") for what in ("t1w", *TRACERS)}
        line |= {name: row[name] for name in ("education", "mmse")}
        line["t1_correlation"] = measured["t1_correlation"]
        for tracer in TRACERS:
            line |= {f"{tracer}_{name}": measured.get(f"{tracer}_{name}", np.nan) for name in MEASURED}
        line["flags"] = ";".join(measure_flags(measured))
        line |= {name: row[name] for name in config.attributes if name in row and name not in line}
        lines.append(line)
    return pd.DataFrame(lines).astype({f"{tracer}_status": "Int64" for tracer in TRACERS})


def _pack(
    config: Config, frame: pd.DataFrame, records: list[dict[str, Any] | None], problems: dict[tuple, list[str]]
) -> pd.DataFrame:
    """Write ``cohort.npy``, the templates and, last, ``index.csv``, unless they are of these volumes already."""
    folder = config.volumes
    excluded = [(*key, "unusable", " ".join("; ".join(lines).split())) for key, lines in sorted(problems.items())]
    usable = [number for number, record in enumerate(records) if record is not None]
    if not usable:
        _refuse_empty(config, excluded)
    records = [records[number] for number in usable]
    index = _index(config, frame.iloc[usable], records)
    left_out = (index["flags"] != "") & config.cohort.exclude_flagged
    excluded += [(row.person, row.session, "flagged", row.flags) for row in index[left_out].itertuples()]
    if len(excluded) == len(frame):
        _refuse_empty(config, excluded)
    table = pd.DataFrame(excluded, columns=["person", "session", "step", "reason"]).sort_values(["person", "session"])
    table = table.merge(frame[["person", "session", "split"]])[_EXCLUDED]
    _write_changed(folder / "excluded.csv", table.to_csv(index=False, lineterminator="\n"))
    _write_changed(folder / "notes.txt", "".join(f"{note}\n" for record in records for note in record.get("notes", ())))
    records = [record for record, out in zip(records, left_out, strict=True) if not out]
    index = index[~left_out].reset_index(drop=True)

    text = index.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    sources = []
    for record in records:
        digests = {what: scan["sha256"] for what, scan in record["inputs"].items()}
        sources.append([record["settings"], digests, *([record["space"]] if "space" in record else [])])
    digest = hashlib.sha256(json.dumps([text, sources]).encode()).hexdigest()
    card = {"grid": to_dict(config.preprocess.grid), "settings": config.digest("preprocess"), "digest": digest}
    card_path, array_path, index_path = folder / "cohort.json", folder / "cohort.npy", folder / "index.csv"
    current = stored_json(card_path) == card and array_path.is_file() and not read_record(folder)[1]
    if not (current and _holds(index_path, text)):
        card_path.unlink(missing_ok=True)
        _write_arrays(config, index, records)
        name, links = f"Preprocessed volumes of profile {config.profile}", {"raw": config.source_root}
        write_description(folder, name, "resdm preprocess", links, synthetic=False)
        write_json(card_path, card)
        write_text(index_path, text)
    made = [array_path, card_path, index_path, folder / "excluded.csv", *folder.glob("template_*.nii.gz")]
    made += [record_path(config, row) for row in index.to_dict("records")]
    made += [folder / file for record in records for file in record.get("files", {})]
    write_record(folder, f"resdm preprocess {config.profile}", made, [config.manifest])
    return index


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _write_changed(path: Path, text: str) -> None:
    if not _holds(path, text):
        write_text(path, text)


def _write_arrays(config: Config, index: pd.DataFrame, records: list[dict[str, Any]]) -> None:
    """``cohort.npy`` (N, 3, X, Y, Z), float16, and each tracer's mean over training sessions."""
    grid, folder = Grid.of(config.preprocess.grid), config.volumes
    sums = {tracer: np.zeros(grid.shape) for tracer in TRACERS}
    shape = (1 + len(TRACERS), *grid.shape)
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(index), *shape)}
    # session by session, not by a memory map: on a full disk a write fails with a reason, a map kills the process
    with atomic(folder / "cohort.npy") as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for split, record in zip(index["split"], records, strict=True):
            session = np.zeros(shape, "<f2")
            for channel, what in enumerate(("t1w", *TRACERS)):
                if what in record["outputs"]:
                    volume = grid.read(folder / record["outputs"][what])
                    session[channel] = volume
                    if what in sums and split == "train":
                        sums[what] += volume
            stream.write(session.tobytes())
    training = index[index["split"] == "train"]
    for tracer, total in sums.items():
        path, n = folder / f"template_{tracer}.nii.gz", int(training[f"present_{tracer}"].sum())
        path.unlink(missing_ok=True)
        if n:
            with atomic(path) as temporary:
                nib.save(grid.image((total / n).astype(np.float32)), temporary)


def _refuse_empty(config: Config, excluded: list[tuple[str, ...]]) -> NoReturn:
    raise VolumeError(
        f"{config.manifest}: all {len(excluded)} sessions are left out, the first because: {excluded[0][3]}; "
        "correct the scans, or set cohort.exclude_flagged and cohort.skip_unreadable to false"
    )
