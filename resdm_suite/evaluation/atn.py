"""Joint profiles of amyloid, tau and neurodegeneration, A/T/(N) of Jack et al. 2018 (Alzheimer's & Dementia 14:535).

**A and T** are calls of the status evaluators (`resdm_suite.evaluation.downstream`), stored in ``status.csv``: fold k
calls A by its amyloid classifier and T by its tau classifier. The reference is the target's label: in phantoms the
planted status, else, or beside it, the cut-off label of the real PET. Only sessions with both PETs have one.

**N** is atrophy of the medial temporal lobe, from the MRI: the mean T1 intensity over `REGION` in MNI space, in which a
voxel that lost tissue to fluid is darker. N is positive below the quantile `SHARE` of the cognitively normal training
people, or of all training people in a cohort without diagnoses. Phantoms also have a planted N: their severity above
the quantile 1 − `SHARE` of the same people. Every source has the same N, because it is computed from the MRI alone.

A profile is a whole number, the sum of `CODES` of its positive markers. Validation people are not used, and nothing is
chosen on test people.
"""

from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, regions
from resdm_suite.evaluation.classification import net_benefit
from resdm_suite.evaluation.downstream import labelled
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.planted import read_causes
from resdm_suite.evaluation.readings import SESSION, TARGETS
from resdm_suite.evaluation.statistics import ends_of, percentile_interval, person_draws, person_weights, with_ends
from resdm_suite.evaluation.status import compare_sources, status_blocks, status_parts
from resdm_suite.evaluation.stored import read_volume
from resdm_suite.profiles import MIN_GROUP_SIZE, Config

CODES = {"A": 1, "T": 2, "N": 4}
"""Markers, and what each adds to the number of a profile."""

JOINT = ("A", "T", "AT", "ATN")
"""Sets of markers that are scored, all on the same sessions."""

METRICS = ("acc", "balanced", "kappa")
"""Accuracy, balanced accuracy and Cohen's κ of a profile."""

REGION, SHARE = "medial_temporal", 0.1
"""Where atrophy is measured, and the share of cognitively normal training people that is positive."""

FREQUENT = "majority"
"""The source that calls everyone the most frequent profile of the training people."""


def profile_name(profile: int, markers: str) -> str:
    """``A+T−`` of a profile's number."""
    return "".join(marker + ("+" if profile & CODES[marker] else "−") for marker in markers)


# ── references ────────────────────────────────────────────────────────────────────────────────────


def neurodegeneration(config: Config, target: str) -> pd.DataFrame:
    """N of the training and test sessions.

    Columns are person, session, split, intensity (mean of the T1 over `REGION`, in [0, 1]), called (0/1, by the MRI), N
    (0/1, the reference: planted for the target ``planted``, else the call itself).
    """
    index = read_index(config, None).query("split in ('train', 'test')").reset_index(drop=True)
    grid = Grid.of(config.preprocess.grid)
    mask = regions(grid)[REGION]
    index["intensity"] = [float(read_volume(config.volumes / path, grid)[mask].mean()) for path in index["t1w"]]
    normal = (index["split"] == "train") & (index["diagnosis"] == "CN")
    if not index["diagnosis"].notna().any() or not normal.any():
        normal = index["split"] == "train"
    index["called"] = index["N"] = (index["intensity"] < index.loc[normal, "intensity"].quantile(SHARE)).astype(int)
    if target == "planted":
        severity = index.merge(read_causes(config), how="left", on=SESSION, validate="one_to_one")["severity"]
        index["N"] = (severity > severity[normal].quantile(1 - SHARE)).astype(int)
    return index[[*SESSION, "split", "intensity", "called", "N"]]


def references(config: Config, target: str) -> pd.DataFrame:
    """`neurodegeneration` with A and T (0/1) of ``target``, of the sessions with both PETs and both labels."""
    frame = neurodegeneration(config, target)
    for marker, tracer in zip("AT", TRACERS, strict=True):
        rows = pd.concat([labelled(config, split, tracer, target) for split in ("train", "test")])
        rows = rows[[*SESSION, "label"]].rename(columns={"label": marker}).astype({marker: int})
        frame = frame.merge(rows, on=SESSION, validate="one_to_one")
    return frame


def joint_references(config: Config, status: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`references` by target, of the targets that ``status.csv`` has for both tracers in people with both PETs."""
    tracers = status.groupby("target")["tracer"].nunique()
    known = {target: references(config, target) for target in TARGETS if tracers.get(target) == len(TRACERS)}
    return {target: people for target, people in known.items() if {"train", "test"} <= set(people["split"])}


def most_frequent(people: pd.DataFrame, markers: str) -> int:
    """The most frequent profile of the training people of `references`; a session weighs one over its person's."""
    train = people[people["split"] == "train"]
    profiles = train[list(markers)] @ [CODES[marker] for marker in markers]
    return int(pd.Series(person_weights(train["person"])).groupby(profiles.to_numpy()).sum().idxmax())


# ── profiles of every source ──────────────────────────────────────────────────────────────────────


def joint_parts(status: pd.DataFrame, people: pd.DataFrame, sources: Iterable[str]) -> dict[str, list[pd.DataFrame]]:
    """Profiles A/T/N of the test sessions by source, one frame per training.

    ``status`` holds rows of ``status.csv`` of one target, ``people`` the `references` of that target. Sources that were
    not read for both tracers are left out. Columns are person, session, age, sex, label, and by fold ``score_<fold>``
    (of A) and ``call_<fold>``. Label and calls are profiles.
    """
    by_tracer = [status_parts(status[status["tracer"] == tracer], sources) for tracer in TRACERS]
    known = people[[*SESSION, "called", "N"]]
    parts: dict[str, list[pd.DataFrame]] = {}
    for source in (name for name in by_tracer[0] if name in by_tracer[1]):
        for a, t in zip(*(part[source] for part in by_tracer), strict=True):
            both = a.merge(t, on=SESSION, suffixes=("", "_T")).merge(known, on=SESSION)
            both["label"] += CODES["T"] * both["label_T"] + CODES["N"] * both["N"]
            for call in (name for name in a if name.startswith("call_")):
                both[call] += CODES["T"] * both[f"{call}_T"] + CODES["N"] * both["called"]
            parts.setdefault(source, []).append(both[list(a)])
    return parts


def restricted(
    parts: Mapping[str, list[pd.DataFrame]], people: pd.DataFrame, markers: str
) -> dict[str, list[pd.DataFrame]]:
    """`joint_parts` with the profiles of some markers; `FREQUENT` calls everyone the `most_frequent` one."""
    mask, chosen = sum(CODES[marker] for marker in markers), {}
    for source, repeats in parts.items():
        chosen[source] = [part.copy() for part in repeats]
        for part in chosen[source]:
            calls = [name for name in part if name.startswith("call_")]
            part[["label", *calls]] &= mask
            if source == FREQUENT:
                part[calls] = most_frequent(people, markers)
    return chosen


def joint_summary(
    status: pd.DataFrame, people: Mapping[str, pd.DataFrame], sources: Iterable[str], bases: Iterable[str], *, seed: int
) -> pd.DataFrame:
    """How well profiles are called from each source, over the test people with both PETs.

    ``people`` holds `references` by target. One row per target, set of markers (`JOINT`), metric (`METRICS`) and
    source, as `resdm_suite.evaluation.status.status_summary`, with the same bootstrap over people and trainings. The
    difference in accuracy to a base is the net share of people reclassified to their own profile; of one marker, twice
    the difference in balanced accuracy is the net reclassification index of two categories (Pencina et al. 2008,
    Statistics in Medicine 27:157).
    """
    rows, sources, bases = [], list(sources), list(bases)
    for target, known in people.items():
        parts = joint_parts(status[status["target"] == target], known, dict.fromkeys([*sources, *bases]))
        for markers in JOINT if parts else ():
            chosen = restricted(parts, known, markers)
            first = next(iter(chosen.values()))[0]
            head = {"target": target, "markers": markers, "n": first["person"].nunique(), "sessions": len(first)}
            rows += [head | row for row in compare_sources(chosen, METRICS, sources, bases, seed=seed)]
    columns = ["source", "target", "markers", "metric", "trainings", "n", "sessions", "folds"]
    columns += ["mean", "std", "ci_low", "ci_high", *(name for base in bases for name in ends_of(f"over_{base}"))]
    return pd.DataFrame(rows, columns=columns)


def confusions(status: pd.DataFrame, people: Mapping[str, pd.DataFrame], sources: Iterable[str]) -> pd.DataFrame:
    """People by reference profile and call: target, source, markers (``AT``, ``ATN``), profile, call, people.

    Means over folds and trainings. A profile of fewer than `MIN_GROUP_SIZE` people has no numbers.
    """
    rows, sources = [], list(sources)
    for target, known in people.items():
        parts = joint_parts(status[status["target"] == target], known, sources)
        for markers in ("AT", "ATN"):
            profiles = range(1 << len(markers))
            for source, repeats in restricted(parts, known, markers).items():
                tables = [
                    pd.crosstab(part["label"], part[name], person_weights(part["person"]), aggfunc="sum")
                    for part in repeats
                    for name in part
                    if name.startswith("call_")
                ]
                mean = sum(one.reindex(index=profiles, columns=profiles).fillna(0.0) for one in tables) / len(tables)
                mean[mean.sum(axis=1) < MIN_GROUP_SIZE - 1e-9] = np.nan
                rows += [
                    [target, source, markers, profile_name(i, markers), profile_name(j, markers), mean.loc[i, j]]
                    for i, j in product(profiles, profiles)
                ]
    return pd.DataFrame(rows, columns=["target", "source", "markers", "profile", "call", "people"])


# ── decisions ─────────────────────────────────────────────────────────────────────────────────────


def decision_curves(status: pd.DataFrame, sources: Iterable[str], thresholds: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Net benefit of each source's score, averaged over the folds, against the threshold probability.

    One row per target, tracer, source and threshold: net_benefit with low and high (95 %, over people; trainings are
    averaged), and ``over_base`` with ``…_low`` and ``…_high``, the difference to ``age_sex``. Two sources need no
    reading: ``all`` treats everyone, and treating nobody has 0. The test people are those of the tracer.
    """
    rows, sources = [], list(sources)
    for target, tracer, parts in status_blocks(status, sources):
        first = next(iter(parts.values()))[0]
        scores = {name: np.array([part["score"] for part in repeats]) for name, repeats in parts.items()}
        scores["all"] = np.ones((1, len(first)))
        label, (weights, resamples) = first["label"].to_numpy(), person_draws(first["person"], seed=seed)
        drawn = {name: net_benefit(label, score, resamples, thresholds) for name, score in scores.items()}
        mean = {name: net_benefit(label, score, weights, thresholds) for name, score in scores.items()}
        for name in scores:
            for k, threshold in enumerate(thresholds):
                row = {"target": target, "tracer": tracer, "source": name, "threshold": threshold}
                row |= {"n": first["person"].nunique(), "net_benefit": mean[name][k]}
                row |= dict(zip(("low", "high"), percentile_interval(drawn[name][:, k]), strict=True))
                if "age_sex" in scores and name != "age_sex":
                    ends = percentile_interval(drawn[name][:, k] - drawn["age_sex"][:, k])
                    row |= with_ends("over_base", mean[name][k] - mean["age_sex"][k], ends)
                rows.append(row)
    columns = ["target", "tracer", "source", "threshold", "n", "net_benefit", "low", "high", *ends_of("over_base")]
    return pd.DataFrame(rows, columns=columns)
