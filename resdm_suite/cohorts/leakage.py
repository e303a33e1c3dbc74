"""No person in two splits: the error, and the checks that every stage makes when it reads people."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

_SHOWN = 5  # people that one error names


class LeakageError(ValueError):
    """A person in more than one split, or in the wrong one: scores on test people would be invalid."""


def check_leakage(frame: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where sessions of one person (``person``, ``split``) lie in different splits.

    ``where`` names the file and starts the message.
    """
    splits = frame.groupby("person")["split"].unique()
    both = splits[splits.map(len) > 1]
    if len(both):
        raise LeakageError(
            f"{where}: {_count(both, 'is', 'are')} in more than one split: "
            f"{_named(f'{person} in ' + ' and '.join(sorted(map(str, names))) for person, names in both.items())}. "
            "All sessions of a person belong in one; draw the split again by person"
        )


def check_tested(frame: pd.DataFrame, index: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where scores (``person``) belong to people whose split in the index is not ``test``."""
    splits = index.loc[index["person"].isin(set(frame["person"])), ["person", "split"]].drop_duplicates()
    others = splits[splits["split"] != "test"]
    if len(others):
        raise LeakageError(
            f"{where}: {_count(others, 'is', 'are')} not of the test split of index.csv: "
            f"{_named(f'{person} in {split}' for person, split in others.itertuples(index=False))}. Tables are of test "
            "people; synthesise, score and read the test people again"
        )


def _count(people: pd.Series | pd.DataFrame, one: str, many: str) -> str:
    return f"1 person {one}" if len(people) == 1 else f"{len(people)} people {many}"


def _named(people: Iterable[str]) -> str:
    people = list(people)
    return "; ".join(people[:_SHOWN]) + (f" … and {len(people) - _SHOWN} more" if len(people) > _SHOWN else "")
