"""A table in the manifest's columns (``data_manifests/README.md``): any cohort whose scans can be listed."""

from __future__ import annotations

from pathlib import Path

from resdm_suite.cohorts.manifest import ManifestError, read_manifest
from resdm_suite.cohorts.matching import Cohort, select_sessions
from resdm_suite.profiles import Config


def build_manifest(root: str | Path, config: Config, *, draw: bool = False) -> Cohort:
    """Read and check a table, and apply ``cohort.match``. Its ``split`` is used if every row has one.

    Parameters
    ----------
    root : path
        CSV; paths in it are relative to its folder, or absolute. Optional columns may be absent.
    config : Config
        Its ``cohort.tracers`` are the permitted labels.
    draw : bool
        Do not read the column ``split``.

    Raises
    ------
    ManifestError
        No table, or one that does not fit: the message names row, column, value and remedy.
    LeakageError
        A person in two splits.
    """
    root = Path(root).absolute()
    if root.is_dir():
        raise ManifestError(f"{root}: a folder; expected a table, by --root table.csv or cohort.folder in the profile")
    if not root.is_file():
        raise ManifestError(f"{root}: no such table; data_manifests/template.csv is one to start from")
    frame = read_manifest(root, split=not draw, tracers=config.cohort.tracers)
    absent = int((frame["split"] == "").sum())
    if not 0 < absent < len(frame):
        return select_sessions(frame, config, root)
    note = f"{root}: {absent} of {len(frame)} sessions have no split; it is drawn for all"
    return select_sessions(frame.assign(split=""), config, root, [note])
