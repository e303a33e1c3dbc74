"""The split by person: drawn by seed and stratum, described by a digest and by counts."""

import hashlib
import math
from typing import Any

import pandas as pd

from resdm.settings import TRACERS, derive_seed
from resdm_suite.cohorts.manifest import SPLITS, ManifestError
from resdm_suite.profiles import SplitConfig


def split_people(frame: pd.DataFrame, split: SplitConfig, seed: int) -> pd.DataFrame:
    """Draw the split by person, stratified by diagnosis at the first session, tracers present and sex.

    People are ordered by stratum, and at random (by seed and name) within one; then every n-th is taken. So each split
    holds its share of every stratum to within one person; small strata are pooled with their neighbours. The order of
    rows has no effect. With ``folds``, every n-th person from the ``fold``-th on is tested: over all folds everybody is
    tested once. Validation people are drawn from the rest.

    An existing split is replaced; too few people for three splits raise `ManifestError`.
    """
    people = {person: (*stratum, derive_seed(seed, "split", person)) for person, stratum in _strata(frame).items()}
    order = sorted(people, key=people.__getitem__)
    start = derive_seed(seed, "split") % len(order)  # else the first in order could never be a test person
    order = order[start:] + order[:start]
    rest, test = _every(order, split.test)
    if split.folds is not None:
        test = order[split.fold :: split.folds]
        rest = [person for person in order if person not in set(test)]
    train, validation = _every(rest, split.validation / (1 - split.tested))
    members = {"train": train, "validation": validation, "test": test}
    for name in members:
        if not members[name]:
            raise ManifestError(f"{len(order)} people are too few: nobody is left for {name}; change cohort.split")
    return frame.assign(split=frame["person"].map({person: name for name in members for person in members[name]}))


def _strata(frame: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Diagnosis at the first session, tracers present (``++``, ``+-``, ``-+``) and sex of every person."""
    strata = {}
    for person, sessions in frame.sort_values(["age", "session"]).groupby("person"):
        tracers = "".join("+" if (sessions[tracer] != "").any() else "-" for tracer in TRACERS)
        strata[person] = (sessions["diagnosis"].iloc[0], tracers, sessions["sex"].iloc[0])
    return strata


def split_digest(frame: pd.DataFrame) -> str:
    """SHA-256 (hex) of the split: sorted lines of person, tab, split. It identifies nobody."""
    pairs = sorted(set(zip(frame["person"], frame["split"], strict=True)))
    return hashlib.sha256("".join(f"{person}\t{split}\n" for person, split in pairs).encode()).hexdigest()


def split_card(frame: pd.DataFrame, split: SplitConfig | None, seed: int) -> dict[str, Any]:
    """Describe a split for ``split.json`` by counts only; ``split`` is None where the source came with one.

    Keys: digest (`split_digest`); drawn (``seed``, ``folds`` and ``fold`` or ``test``, ``validation``; None without
    ``split``); people by split; strata: people by stratum and split.
    """
    people = frame.drop_duplicates("person").set_index("person")["split"]
    strata = pd.Series({person: " ".join(part or "–" for part in s) for person, s in _strata(frame).items()})
    counts = pd.crosstab(strata.rename("stratum"), people).reindex(columns=list(SPLITS), fill_value=0)
    drawn = None
    if split is not None:
        parts = {"test": split.test} if split.folds is None else {"folds": split.folds, "fold": split.fold}
        drawn = {"seed": seed, **parts, "validation": split.validation}
    by_split = {"people": counts.sum().to_dict(), "strata": counts.to_dict("index")}
    return {"digest": split_digest(frame), "drawn": drawn} | by_split


def _every(order: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Take a fraction of people, evenly spaced: (those passed over, those taken)."""
    taken = [math.floor((i + 1) * fraction + 0.5) > math.floor(i * fraction + 0.5) for i in range(len(order))]
    return [p for p, t in zip(order, taken, strict=True) if not t], [p for p, t in zip(order, taken, strict=True) if t]
