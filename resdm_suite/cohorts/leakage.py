"""A person belongs to one split: the error that says otherwise, and the check that every stage makes as it reads."""

from __future__ import annotations

import pandas as pd

_SHOWN = 5  # people that one error names


class LeakageError(ValueError):
    """A person in more than one split, or in the wrong one: every score on the test people would be worthless."""


def check_leakage(frame: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where sessions of one person lie in different splits.

    Parameters
    ----------
    frame : DataFrame
        With ``person`` and ``split``.
    where : str
        Starts the message: the file it came from.
    """
    splits = frame.groupby("person")["split"].unique()
    both = splits[splits.map(len) > 1]
    if len(both):
        said = [f"{person} in {' and '.join(sorted(map(str, names)))}" for person, names in both.items()]
        raise LeakageError(
            f"{where}: {len(both)} {'person is' if len(both) == 1 else 'people are'} in more than one split: "
            f"{_named(said)}. All sessions of a person belong in one; draw the split again by person"
        )


def check_tested(frame: pd.DataFrame, index: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where stored scores or readings are of people that the index does not test.

    Parameters
    ----------
    frame : DataFrame
        With ``person``.
    index : DataFrame
        All sessions, with ``person`` and ``split``.
    where : str
        Starts the message: the file that ``frame`` came from.
    """
    splits = index.loc[index["person"].isin(set(frame["person"])), ["person", "split"]].drop_duplicates()
    others = splits[splits["split"] != "test"]
    if len(others):
        said = [f"{person} in {split}" for person, split in others.itertuples(index=False)]
        raise LeakageError(
            f"{where}: {len(others)} {'person is' if len(others) == 1 else 'people are'} not of the test split of "
            f"index.csv: {_named(said)}. Tables are of test people; synthesise, score and read the test people again"
        )


def _named(said: list[str]) -> str:
    return "; ".join(said[:_SHOWN]) + (f" … and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")
