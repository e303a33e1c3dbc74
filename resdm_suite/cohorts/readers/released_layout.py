"""The folders that the paper's released code reads (GitHub ``Ouzaixin/ResDM``, commit f5b35d8).

``data/whole_MRI``, ``whole_Abeta`` and ``whole_Tau`` hold ``<ID>.nii``, one name per person, such as a participant's
number without underscores; a PET may be absent. ``data_info/train.txt``, ``validation.txt`` and ``test.txt`` hold IDs
between blanks. ``data_info/data_info.csv`` (``info.csv`` in its code) has columns ``ID``, ``Age``, ``Sex`` and a label
of unknown name. Volumes are read as stored: 128³ voxels, assumed in [0, 1]. Neither space nor scaling is documented, so
both are checked:

**Space**: scans are resampled if the headers of all scans of a session state MNI152 (code 4), else registered.
**Intensity**: SUVR is measured again in the reference region. This undoes a factor but no offset: after min-max scaling
per volume with a minimum above 0, it is not the true SUVR.
"""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from resdm_suite.cohorts.leakage import LeakageError, check_leakage
from resdm_suite.cohorts.manifest import PATHS, SPACE, SPLITS, ManifestError
from resdm_suite.cohorts.matching import Cohort, assemble_manifest
from resdm_suite.cohorts.tables import images, read_by_key
from resdm_suite.paths import stem
from resdm_suite.profiles import Config

_FOLDERS = {"t1w": "whole_MRI", "amyloid": "whole_Abeta", "tau": "whole_Tau"}
_TABLES = ("data_info.csv", "info.csv")  # of its README, and of its code
_LABELS = ("label", "dx", "diagnosis", "group")
_PARTICIPANT = re.compile(r"(\d{3})_?S_?(\d{4,6})(\D.*)?")
_MNI_CODE = 4


def build_manifest(root: str | Path, config: Config, *, draw: bool = False) -> Cohort:
    """Read the released code's folders and its split.

    IDs with one participant's number are sessions of one person. The layout does not name tracers: the first of each
    target in ``cohort.tracers`` is assumed.

    ``root`` holds ``data`` and ``data_info``. With ``draw``, the lists are ignored: everybody with an MRI is used, and
    the split is left empty. Faults raise `ManifestError`; a person in two lists raises `LeakageError`.
    """
    root = Path(root).absolute()
    for folder in ("data/whole_MRI", "data_info"):
        if not (root / folder).is_dir():
            raise ManifestError(
                f"{root}: no folder {folder}; expected the released layout: data/whole_{{MRI,Abeta,Tau}} and data_info"
            )
    notes: list[str] = []
    participants = _participants(root / "data_info", notes)
    volumes = {target: {stem(path.name): path for path in images(root / "data" / folder, "*")}
               for target, folder in _FOLDERS.items()}  # fmt: skip
    splits = {} if draw else _splits(root / "data_info")
    unlisted = sorted(set(volumes["t1w"]) - set(splits)) if splits else []
    if unlisted:
        notes.append(f"{len(unlisted)} volumes of data/whole_MRI are in no list ({unlisted[0]} …); not used")
    names = sorted(splits or volumes["t1w"])
    if not names:
        raise ManifestError(f"{root}: no <ID>.nii in data/whole_MRI, or no ID in the lists of data_info")
    scans, people, in_mni = [], [], 0
    ids: dict[tuple[str, ...], str] = {}
    for name in names:
        match = _PARTICIPANT.fullmatch(name)
        number, visit = (f"{match[1]}S{match[2]}", match[3] or "") if match else (name, "")
        key = {"person": f"sub-{_label(number)}", "session": f"ses-{_label(visit) or '1'}"}
        if (other := ids.setdefault(tuple(key.values()), name)) != name:
            raise ManifestError(f"{root}: IDs {other} and {name} both mean {' '.join(key.values())}; rename one")
        paths = {target: volumes[target][name] for target in PATHS if name in volumes[target]}
        space = SPACE if paths and all(_in_mni(path) for path in paths.values()) else ""
        in_mni += space == SPACE
        for target, path in paths.items():
            label = next((label for label, of in config.cohort.tracers.items() if of == target), "")
            if not label and target != "t1w":
                raise ManifestError(f"cohort.tracers names no {target} tracer; the released layout holds {target} PET")
            scans.append(key | {"target": target, "tracer": label, "path": str(path), "space": space})
        if name not in participants:
            notes.append(f"{name}: not in {_TABLES[0]}")
        cells = participants.get(name, {})
        row = key | {"split": splits.get(name, ""), "age": cells.get("age", ""), "sex": cells.get("sex", "")}
        row |= {name: cells.get(name, "") for name in config.attributes if name not in row}
        people.append(row | {"diagnosis": next((cells[column] for column in _LABELS if cells.get(column)), "")})
    try:
        check_leakage(pd.DataFrame(people), str(root / "data_info"))
    except LeakageError as error:
        raise LeakageError(f"{error}: `resdm manifest released --draw-split`") from None
    others = len(names) - in_mni
    notes.append(f"headers state {SPACE} for {in_mni} sessions, which are resampled; the other {others} are registered")
    return assemble_manifest(scans, people, config, root, notes)


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _splits(folder: Path) -> dict[str, str]:
    """Read the lists: ID → split."""
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise ManifestError(f"{path}: no such list; write one, or draw the split: --draw-split")
        try:
            names = path.read_text(encoding="utf-8-sig").split()
        except UnicodeDecodeError:
            raise ManifestError(f"{path}: not UTF-8; save it as plain text in UTF-8") from None
        for name in map(stem, names):
            if splits.setdefault(name, split) != split:
                raise LeakageError(
                    f"{path}: {name} is in {splits[name]}.txt too. All sessions of a person belong in one list; take "
                    "it out of one, or draw the split by person: `resdm manifest released --draw-split`"
                )
    return splits


def _participants(folder: Path, notes: list[str]) -> dict[str, dict[str, str]]:
    """Read ``data_info.csv`` by ID, in Latin-1 as the released code does where it is not UTF-8."""
    path = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if path is None:
        raise ManifestError(f"{folder}: no {_TABLES[0]}; expected a table with columns ID, Age, Sex")
    return read_by_key(path, "id", separator=",", needed=("age", "sex"), notes=notes, any_encoding=True)


def _in_mni(path: Path) -> bool:
    """Whether a header gives an affine to MNI152; False for a broken file, which preprocessing will name."""
    try:
        image = nib.load(path)
    except Exception:  # a broken header raises whatever nibabel, numpy or zlib meet first
        return False
    code = int(image.header["sform_code"]) or int(image.header["qform_code"])
    return code == _MNI_CODE and bool(np.isfinite(image.affine).all())
