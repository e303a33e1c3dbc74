"""One call from a data source to ``manifest.csv``: read the sessions, split the participants, write the tables."""

import importlib
from pathlib import Path

import pandas as pd

from resdm.io import write_csv, write_json, write_text
from resdm_suite.cohorts.manifest import PATHS, SPLITS, ManifestError, check_leakage, write_manifest
from resdm_suite.cohorts.matching import Cohort
from resdm_suite.cohorts.splits import split_card, split_people
from resdm_suite.profiles import Config, load_config
from resdm_suite.records import check_folder

READERS = {
    "bids": "resdm_suite.cohorts.readers.bids",
    "adni": "resdm_suite.cohorts.readers.adni",
    "openneuro": "resdm_suite.cohorts.readers.openneuro",
    "csv": "resdm_suite.cohorts.readers.table",
    "released": "resdm_suite.cohorts.readers.released_layout",
}
"""``cohort.source`` → the module that reads it, imported on use: a changed reader affects its source only."""

WITH_SPLIT = ("csv", "released")
"""Sources that may include a split."""


def find_sessions(
    config: Config | str | Path, root: str | Path | None = None, source: str | None = None, *, draw: bool = False
) -> Cohort:
    """Read a source: its sessions, and the excluded ones with their reasons. Writes nothing.

    ``root`` (folder or table) and ``source`` (a key of `READERS`) are the profile's by default; with ``draw``, the
    split of a source of `WITH_SPLIT` is ignored. A file of phantoms that is not as `resdm phantom` wrote it raises
    `RecordError`.
    """
    config = load_config(config)
    source = source or config.cohort.source
    options = {"draw": True} if draw and source in WITH_SPLIT else {}
    reader, root = importlib.import_module(READERS[source]), Path(root or config.source_root)
    check_folder(root)
    return reader.build_manifest(root, config, **options)


def make_manifest(
    config: Config | str | Path,
    root: str | Path | None = None,
    source: str | None = None,
    *,
    draw: bool = False,
    cohort: Cohort | None = None,
) -> pd.DataFrame:
    """Read a source, split its participants; write ``manifest.csv``, ``flow.csv``, ``left_out.csv``, ``notes.txt``.

    A complete split of the source is used. ``split.json`` contains the digest of the split, its method and its counts.
    ``cohort`` is the result of `find_sessions`, if it was called before with the same arguments. Returns the flow:
    step, people, sessions. Where scans of the manifest are missing on disk, or a split is empty, `ManifestError` is
    raised; an older ``manifest.csv`` and its tables stay.
    """
    config = load_config(config)
    source = source or config.cohort.source
    cohort = find_sessions(config, root, source, draw=draw) if cohort is None else cohort

    def write_tables() -> None:
        write_csv(config.work / "flow.csv", cohort.flow)
        write_csv(config.work / "left_out.csv", cohort.left_out)
        write_text(config.work / "notes.txt", "".join(f"{note}\n" for note in cohort.notes))

    if not config.manifest.is_file():  # they show why a first call fails; later they describe the manifest that stays
        write_tables()
    _check_files(config, Path(root or config.source_root), source, cohort.manifest)
    for name in config.attributes:
        if name not in cohort.manifest or not (cohort.manifest[name].notna() & (cohort.manifest[name] != "")).any():
            raise ManifestError(
                f"{root or config.source_root}: no session has a value of {name!r}, a field of a prompt; add a column "
                f"of that name to the tables of the source, or leave {name} out of prior.fields"
            )
    frame, drawn = cohort.manifest, (cohort.manifest["split"] == "").any()
    if not drawn and config.cohort.split.folds is not None:
        fault = "a split came with the data, so cohort.split.folds would have no effect; remove one of the two"
        raise ManifestError(f"{root or config.source_root}: {fault}")
    if drawn:
        frame = split_people(frame, config.cohort.split, config.seed)
    empty = [name for name in SPLITS if name not in set(frame["split"])]
    if empty:
        raise ManifestError(
            f"{config.manifest}: the split that came with the data leaves nobody for {', '.join(empty)}; complete it, "
            f"or draw another: `resdm manifest {source} {config.profile} --draw-split`"
        )
    check_leakage(frame, str(config.manifest))
    write_manifest(frame, config.manifest)
    write_json(config.work / "split.json", split_card(frame, config.cohort.split if drawn else None, config.seed))
    write_tables()
    return cohort.flow


def _check_files(config: Config, root: Path, source: str, frame: pd.DataFrame) -> None:
    """Raise `ManifestError` where scans are missing on disk, with the remedy."""
    size = 0
    if source == "openneuro":
        openneuro = importlib.import_module(READERS[source])
        absent, size = openneuro.not_downloaded(frame, root)
        remedy = openneuro.remedy(config)
    else:
        absent = sorted(cell for name in PATHS for cell in frame[name] if cell and not Path(cell).is_file())
        remedy = "correct the paths, `datalad get` what git-annex holds, or leave those sessions out"
    if absent:
        scans = int((frame[list(PATHS)] != "").to_numpy().sum())
        amount = f"{len(absent)} of {scans} scans" + (f" of {size / 1e9:.2f} GB" if size else "")
        raise ManifestError(f"{root}: {amount} are missing or incomplete, the first {absent[0]}; {remedy}")
