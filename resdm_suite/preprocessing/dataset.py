"""The preprocessed cohort as a torch data set: a memory map of volumes, one item per session."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from resdm.attributes import Known, is_number
from resdm.batch import PROMPT_FIELDS, Batch, Prior
from resdm.settings import TRACERS, derive_seed, to_dict
from resdm_suite.cohorts.leakage import check_attributes, check_leakage
from resdm_suite.cohorts.manifest import SPLITS
from resdm_suite.profiles import Config
from resdm_suite.records import checked, read_csv, read_json, reading


class CohortError(ValueError):
    """Preprocessed volumes that do not fit each other or the profile: names the file and the command to run again."""


class CohortDataset(Dataset):
    """Sessions of one split.

    An item is a dictionary: ``volumes`` (3, X, Y, Z) float32 in [0, 1] (T1, amyloid, tau; zeros where a PET is
    missing), ``present`` (2,) bool, ``age``, ``sex``, ``attributes`` (name → number, text or None), ``row`` (its
    position), ``person``. Items, augmentation included, depend on the profile's seed, the epoch and the index alone, so
    a resumed training continues exactly.

    Parameters
    ----------
    config : Config
        Reads ``volumes/index.csv`` and ``volumes/cohort.npy``.
    split : {"train", "validation", "test"}
    augment : bool
        Shift and flip at random (see `augment`), by ``training.shift_voxels`` and ``training.flip``.

    Attributes
    ----------
    index : DataFrame
        The split's rows of ``index.csv``, in the order of the items.

    Raises
    ------
    CohortError
        Volumes that are missing, of another grid, or not those of the index.
    LeakageError
        A person in more than one split.
    """

    def __init__(self, config: Config, split: str, augment: bool = False) -> None:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        folder, again = config.volumes, "run `resdm preprocess`"
        path, self._array_path = folder / "index.csv", folder / "cohort.npy"
        for required in (path, self._array_path, folder / "cohort.json"):
            if not checked(required).is_file():
                raise CohortError(f"{required}: not there; {again}")
        text = {"person": str, "session": str, "sex": str}
        index = read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
        check_leakage(index, str(path))
        self._array: np.ndarray | None = None
        card, expected = read_json(folder / "cohort.json"), to_dict(config.preprocess.grid)
        with reading(folder / "cohort.json"):
            grid, settings, voxel_mm = card["grid"], card["settings"], card["grid"]["voxel_mm"]
        with reading(self._array_path):
            shape = self._volumes().shape
        if grid != expected or list(shape[2:]) != expected["shape"]:
            raise CohortError(
                f"{self._array_path}: volumes of unequal grid: found {list(shape[2:])} voxels ({voxel_mm:g} mm "
                f"by cohort.json), the profile's is {expected['shape']} of {expected['voxel_mm']:g} mm; {again}"
            )
        if settings != config.digest("preprocess"):
            fault = "made under other settings of preprocess than the profile's"
            raise CohortError(f"{self._array_path}: {fault}; {again}")
        if shape[:2] != (len(index), 1 + len(TRACERS)):
            found = f"{shape[0]} sessions of {shape[1]} volumes, {path.name} has {len(index)} of {1 + len(TRACERS)}"
            raise CohortError(f"{self._array_path}: holds {found}; {again}")
        self._attributes = read_attributes(index, config.attributes, str(path))
        check_attributes(index, self._attributes, str(path))
        self._rows = np.flatnonzero(index["split"] == split)
        if not len(self._rows):
            raise CohortError(f"{path}: no session in split {split!r}; draw the split again")
        self.index = index.iloc[self._rows].reset_index(drop=True)
        self._shift, self._flip = (config.training.shift_voxels, config.training.flip) if augment else (0, False)
        self._seed, self._epoch = config.seed, 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # -1 is the last
        row = self.index.iloc[index]
        volumes = self._volumes()[self._rows[index]]  # (3, X, Y, Z), not read yet
        if self._shift or self._flip:
            generator = np.random.default_rng(derive_seed(self._seed, "augment", self._epoch, index))
            volumes = augment(volumes, self._shift, self._flip, generator)
        volumes = np.array(volumes, dtype=np.float32)  # (3, X, Y, Z)
        return {
            "volumes": torch.from_numpy(volumes),
            "present": torch.tensor([bool(row[f"present_{tracer}"]) for tracer in TRACERS]),
            "age": float(row["age"]),
            "sex": str(row["sex"]),
            "attributes": {name: values[self._rows[index]] for name, values in self._attributes.items()},
            "row": index,
            "person": str(row["person"]),
        }

    def mri(self, index: int) -> np.ndarray:
        """The stored T1 of a session (X, Y, Z), float32, never augmented."""
        return np.asarray(self._volumes()[self._rows[index], 0], dtype=np.float32)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that augmentation depends on."""
        self._epoch = epoch

    def _volumes(self) -> np.ndarray:
        """The memory map (N, 3, X, Y, Z), float16; each process opens one."""
        if self._array is None:
            self._array = np.load(self._array_path, mmap_mode="r")
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}  # else workers would receive the contents


def read_attributes(
    index: pd.DataFrame, names: Sequence[str], where: str, known: Known | None = None
) -> dict[str, list[float | str | None]]:
    """Columns of ``index.csv`` (at ``where``) for `resdm.batch.Prior`: numbers or text; None if missing or infinite.

    A column is text where a value is no number or, of rows of a part of the people, where it is ``known`` as text.

    Raises
    ------
    CohortError
        A column that is not there.
    """
    absent = [name for name in names if name not in index]
    if absent:
        raise CohortError(
            f"{where}: no column {', '.join(absent)}, which prior.fields of a method names; run `resdm manifest` and "
            f"`resdm preprocess`, or leave the field out"
        )
    columns: dict[str, list[float | str | None]] = {}
    for name in names:
        column = index[name].where(index[name].astype(str) != "")
        numbers = pd.to_numeric(column, errors="coerce")
        column, numbers = (values.mask(np.isinf(numbers)) for values in (column, numbers))
        of_text = name in (known or {}) and not is_number(known[name])
        number = column.dtype != bool and not of_text and numbers.notna().sum() == column.notna().sum()
        convert = float if number else str
        columns[name] = [None if pd.isna(value) else convert(value) for value in column]
    return columns


def augment(volumes: np.ndarray, shift: int, flip: bool, generator: np.random.Generator) -> np.ndarray:
    """One random transform for all volumes (C, X, Y, Z) of a session, a copy: MRI and PETs stay registered.

    They are moved by up to ``shift`` voxels along each axis, and the new rim is 0. With ``flip`` left and right are
    mirrored in half of the calls.
    """
    by = generator.integers(-shift, shift, 3, endpoint=True)
    mirrored = generator.random() < 0.5  # drawn in any case, so that the option changes nothing else
    source = volumes[:, ::-1] if flip and mirrored else volumes
    moved = np.zeros(volumes.shape, dtype=volumes.dtype)
    target = [slice(max(b, 0), n + min(b, 0)) for b, n in zip(by, source.shape[1:], strict=True)]
    origin = [slice(t.start - b, t.stop - b) for t, b in zip(target, by, strict=True)]
    moved[(slice(None), *target)] = source[(slice(None), *origin)]
    return moved


def collate(items: list[dict[str, Any]]) -> Batch:
    """Sessions → a `Batch`."""
    volumes = torch.stack([item["volumes"] for item in items])  # (B, 3, X, Y, Z)
    return Batch(
        mri=volumes[:, :1],
        pet=volumes[:, 1:],
        present=torch.stack([item["present"] for item in items]),
        prior=Prior(
            **{name: tuple(item[name] for item in items) for name in PROMPT_FIELDS},
            more={name: tuple(item["attributes"][name] for item in items) for name in items[0].get("attributes", {})},
        ),
        rows=torch.tensor([item["row"] for item in items]),
        people=tuple(item["person"] for item in items),
    )
