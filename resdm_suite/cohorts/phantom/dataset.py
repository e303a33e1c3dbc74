"""The phantom cohort on disk: a BIDS dataset, written person by person."""

import datetime
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from resdm.io import atomic, stored_json, write_csv, write_json, write_text
from resdm.settings import TRACERS, ConfigError, to_dict
from resdm_suite.cohorts.phantom.anatomy import draw_deformation
from resdm_suite.cohorts.phantom.people import SCAN, draw_person, person_name, random_stream
from resdm_suite.cohorts.phantom.scanner import Acquisition, bids_text, make_visit, scan_pet, scan_t1
from resdm_suite.cohorts.phantom.truth import write_truth
from resdm_suite.paths import sidecar_path, tools_of
from resdm_suite.profiles import Config
from resdm_suite.records import alone, read_record, write_record

GENERATOR = "resdm phantom"
"""Name in ``dataset_description.json`` that marks a dataset of this generator."""

REVISION = 2
"""Raise it whenever the same settings and seed give other files, so that old ones are made again."""


class PhantomError(RuntimeError):
    """A folder that the generator must not write to: names it, its content and the remedy."""


@alone("phantom")
def write_phantoms(config: Config, *, jobs: int = 1, progress: bool = True) -> Path:
    """Write the phantom cohort of a profile as a BIDS dataset, and its truth.

    A person's bytes follow from the seed, the person's number and the settings alone, not from ``jobs`` or the number
    of people. Complete people stay as they are: a second call writes nothing, a killed call continues, a larger cohort
    adds people, a smaller one removes them. Under other settings, seed or revision this generator's files are removed
    and made again, with a warning. A folder that holds anything else is refused, by `PhantomError`.

    The dataset goes to `Config.source_root`, which is returned, and the truth to ``work/truth``. ``jobs`` is a number
    of processes, of one thread each. `ConfigError`: ``cohort.phantom`` is missing, or no tau stage passes
    ``cohort.tau_cutoff``.
    """
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; phantoms need its settings")
    root, truth, digest = config.source_root, config.work / "truth", settings_digest(config)
    names = [person_name(index) for index in range(settings.people)]
    _prepare_folder(root, truth, digest, keep=set(names))

    stage, stored = f"resdm phantom {config.profile}", [read_record(folder) for folder in (root, truth)]
    stamp = {"digest": digest, "people": settings.people, "tau_cutoff": config.cohort.tau_cutoff}
    broken = set().union(*(paths for _, paths in stored))
    todo = [index for index, name in enumerate(names) if not _complete(truth / f"{name}.json", root, digest, broken)]
    if not (todo or broken) and all(stamp.items() <= record.items() for record, _ in stored):
        return root
    work = Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")(
        delayed(_write_person)(config, index, digest) for index in todo
    )
    for _ in tqdm(work, total=len(todo), desc="phantoms", unit="person", disable=not progress or not todo):
        pass
    people = [stored_json(truth / f"{name}.json") for name in names]
    _write_tables(root, people)
    write_truth(config, digest, people)
    files = [root / name for name in ("README", "participants.tsv", "participants.json", "dataset_description.json")]
    write_record(root, stage, [*files, *(root / file for person in people for file in person["files"])], **stamp)
    files = [truth / name for name in ("truth.json", "people.csv", "regional.csv")]
    write_record(truth, stage, [*files, *(truth / f"{name}.json" for name in names)], **stamp)
    return root


def settings_digest(config: Config) -> str:
    """Digest of settings, seed and revision, which set a person's bytes together with the person's number."""
    settings = to_dict(config.cohort.phantom) | {"seed": config.seed, "revision": REVISION}
    del settings["people"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _prepare_folder(root: Path, truth: Path, digest: str, keep: set[str]) -> None:
    """Refuse a folder of other origin; remove people of other settings or numbers, and unfinished files."""
    description = root / "dataset_description.json"
    if root.exists() and any(root.iterdir()):
        made_by = next(iter(tools_of(root)), {})
        if made_by.get("Name") != GENERATOR:
            raise PhantomError(
                f"{root}: holds files that the phantom generator did not write (no {description.name} with "
                f"GeneratedBy {GENERATOR!r}); give cohort.folder an empty folder, or move these files away"
            )
        if made_by.get("Digest") != digest:
            fault = "phantoms of other settings or of another revision; they are removed and made again"
            warnings.warn(f"{root}: {fault}", stacklevel=3)
            keep = set()
    for folder, pattern in ((root, r"sub-\d{4,}|\.\d+\..+"), (truth, r"sub-\d{4,}\.json|\.\d+\..+")):
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            if re.fullmatch(pattern, path.name) and path.name.removesuffix(".json") not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not description.is_file() or digest not in description.read_text(encoding="utf-8"):
        write_json(description, {
            "Name": "Phantom cohort of resdm (synthetic: no person was scanned)",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "Authors": ["resdm"],
            "License": "CC0",
            "GeneratedBy": [{"Name": GENERATOR, "Description": "simulated T1, amyloid and tau PET", "Digest": digest}],
        })  # fmt: skip


def _complete(record: Path, root: Path, digest: str, broken: set[Path]) -> bool:
    person = stored_json(record) or {}
    files = [root / file for file in person.get("files", [])]
    return person.get("digest") == digest and not broken & {record, *files} and all(map(Path.is_file, files))


def _write_tables(root: Path, people: list[dict[str, Any]]) -> None:
    """README and participants of the dataset."""
    write_text(root / "README", bids_text("README"))
    columns = {"age": "age_bl", "diagnosis": "diagnosis_sc", "mmse": "mmse_bl"}
    participants = pd.DataFrame([
        {"participant_id": person["person"], "sex": person["sex"], "education_level": person["education"]}
        | {column: person["sessions"][0][key] for key, column in columns.items()}
        | {name: "n/a" if value is None else value for name, value in person.get("attributes", {}).items()}
        for person in people
    ])  # fmt: skip
    write_csv(root / "participants.tsv", participants, separator="\t")
    described, planted = (json.loads(bids_text(f"{name}.json")) for name in ("participants", "attributes"))
    described |= {name: planted[name] for name in planted if name in participants}
    write_json(root / "participants.json", described)


def _write_person(config: Config, index: int, digest: str) -> None:
    with threadpool_limits(limits=1):  # BLAS sums in another order with more threads: other bytes
        root, name, person = config.source_root, person_name(index), draw_person(config, index)
        shutil.rmtree(root / name, ignore_errors=True)  # unfinished files of a killed call
        visits = person.pop("visits")
        paths = [path for n, visit in enumerate(visits) for path in _write_session(config, index, n, person, visit)]
        path = root / name / f"{name}_sessions.tsv"
        rows = [(v["session"], v["date"], f"{v['age']:.1f}", v["diagnosis"], v["mmse"]) for v in visits]
        columns = ["session_id", "examination_date", "age", "diagnosis", "MMSE"]
        write_csv(path, pd.DataFrame(rows, columns=columns), separator="\t")
        write_text(path.with_suffix(".json"), bids_text("sessions.json"))
        files = [file.relative_to(root).as_posix() for file in (*paths, path, path.with_suffix(".json"))]
        record = {"person": name, "digest": digest, **person, "sessions": visits, "files": files}
        write_json(config.work / "truth" / f"{name}.json", record)  # last: marks the person as complete


def _write_session(
    config: Config, index: int, number: int, person: dict[str, Any], record: dict[str, Any]
) -> list[Path]:
    """Write a session's scans; add deformation, transforms and regional SUVR to its ``record``; return the files."""
    root, name, session = config.source_root, person_name(index), record["session"]
    record["deformation"] = draw_deformation(config.seed, index, record["ventricles"])
    scans = _acquire_scans(config, index, number, person, record)
    paths, dates = [], []
    for what, (file, scan, days) in scans.items():
        path = root / name / session / file
        _save(path, scan)
        write_json(sidecar_path(path), scan.sidecar)
        date = datetime.date.fromisoformat(record["date"]) + datetime.timedelta(days=days)
        dates.append((file, f"{date}T10:00:00"))
        paths += [path, sidecar_path(path)]
        to_person = scan.truth["world_to_person"]
        to_mni = np.array(person["person_to_mni"]) @ to_person
        transforms = {"world_to_person": to_person.tolist(), "world_to_mni": to_mni.tolist()}
        record["scans"][what] = {"path": path.relative_to(root).as_posix(), **scan.truth, **transforms}
    path = root / name / session / f"{name}_{session}_scans.tsv"
    write_csv(path, pd.DataFrame(dates, columns=["filename", "acq_time"]), separator="\t")
    return [*paths, path]


def _acquire_scans(
    config: Config, index: int, number: int, person: dict[str, Any], record: dict[str, Any]
) -> dict[str, tuple[str, Acquisition, int]]:
    """File, scan and days after the MRI of every scan of a session; regional SUVR goes to its ``record``."""
    stem, visit = f"{person_name(index)}_{record['session']}", make_visit(config, index, person, record)
    record |= {"scans": {}, "suvr": {}, "summary": {}}
    t1, pose = scan_t1(random_stream(config.seed, index, SCAN, number, 0), visit)
    scans = {"t1w": (f"anat/{stem}_T1w.nii.gz", t1, 0)}
    for order, tracer in enumerate(TRACERS, 1):
        if tracer not in person["tracers"]:
            continue
        label = person["amyloid_tracer"] if tracer == "amyloid" else "18FAV1451"
        causes = {"load": record["load"], "stage": record["stage"], "white": person["white"][tracer]}
        uptake = visit.uptake(tracer, label, **causes, personal=visit.personal[tracer])
        rng = random_stream(config.seed, index, SCAN, number, order)
        scan, record["suvr"][tracer], record["summary"][tracer] = scan_pet(rng, visit, uptake, tracer, label, pose)
        scans[tracer] = (f"pet/{stem}_trc-{label}_pet.nii.gz", scan, int(rng.integers(45)))
    return scans


def _save(path: Path, scan: Acquisition) -> None:
    """Write int16, with a slope for fractional values; both orientation codes 1 (scanner)."""
    data = scan.data
    whole = data.max() <= 32767 and bool((data == np.rint(data)).all())
    slope = 1.0 if whole else float(np.float32(data.max() / 32767))
    image = nib.Nifti1Image(np.rint(data / np.float32(slope)).astype(np.int16), scan.affine)
    image.set_sform(scan.affine, code=1)
    image.set_qform(scan.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, 0)  # no intercept: air stays exactly 0
    with atomic(path) as temporary:
        nib.save(image, temporary)
