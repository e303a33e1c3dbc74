"""A table in the manifest's columns (``data_manifests/README.md``): any cohort whose scans can be listed."""

from pathlib import Path

from resdm_suite.cohorts.manifest import ManifestError, read_manifest
from resdm_suite.cohorts.matching import Cohort, select_sessions
from resdm_suite.profiles import Config


def build_manifest(root: str | Path, config: Config, *, draw: bool = False) -> Cohort:
    """Read and check a table, and apply ``cohort.match``. Its ``split`` is used if every row has one.

    Paths are absolute or relative to the table's folder; optional columns may be absent; labels are those of
    ``cohort.tracers``. With ``draw``, the column ``split`` is not read. Faults raise `ManifestError`, which names row,
    column, value and remedy; a person in two splits raises `LeakageError`.
    """
    root = Path(root).absolute()
    if root.is_dir():
        raise ManifestError(f"{root}: a folder; expected a table, by --root table.csv or cohort.folder in the profile")
    if not root.is_file():
        raise ManifestError(f"{root}: no such table; data_manifests/template.csv is one to start from")
    frame = read_manifest(root, split=not draw, tracers=config.cohort.tracers, attributes=config.attributes)
    for row in frame[frame.duplicated(["person", "t1w"])].to_dict("records")[:1]:
        fault = f"{row['person']} {row['session']}: {row['t1w']} is the T1 of another session of the person"
        raise ManifestError(f"{root}: {fault}; correct the path, or keep one row")
    absent = int((frame["split"] == "").sum())
    if not 0 < absent < len(frame):
        return select_sessions(frame, config, root)
    note = f"{root}: {absent} of {len(frame)} sessions have no split; it is drawn for all"
    return select_sessions(frame.assign(split=""), config, root, [note])
