"""A table of one's own → the manifest: any cohort, once its scans are listed as ``data_manifests/README.md`` says."""

from __future__ import annotations

from pathlib import Path

from resdm_suite.cohorts.manifest import ManifestError, read_manifest
from resdm_suite.cohorts.matching import Found, close_manifest
from resdm_suite.profiles import Config


def build_manifest(root: str | Path, config: Config, *, draw: bool = False) -> Found:
    """Read and check a table in the manifest's columns, and apply ``cohort.match`` to it.

    Parameters
    ----------
    root : path
        The table, CSV; paths in it are relative to its folder, or absolute. Columns that are not needed may be absent.
    config : Config
        Its ``cohort.tracers`` are the labels that a scan may have.
    draw : bool
        Do not read the column ``split``.

    Returns
    -------
    Found
        With the table's ``split`` where every row has one.

    Raises
    ------
    ManifestError
        No table, or one that does not fit: names row, column, what was found and expected.
    LeakageError
        A person in two splits.
    """
    root = Path(root).absolute()
    if root.is_dir():
        raise ManifestError(f"{root}: a folder; expected a table, by --root table.csv or cohort.folder in the profile")
    if not root.is_file():
        raise ManifestError(f"{root}: no such table; data_manifests/template.csv is one to start from")
    frame = read_manifest(root, split=not draw, tracers=config.cohort.tracers)
    notes = []
    absent = int((frame["split"] == "").sum())
    if 0 < absent < len(frame):
        notes.append(f"{root}: {absent} of {len(frame)} sessions have no split; it is drawn for all")
        frame["split"] = ""
    return close_manifest(frame, config, root, notes)
