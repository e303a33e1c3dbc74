"""Synthetic PET of any tool against real PET: which files belong together, and every measure of them.

A table lists the real scans of each session. Synthetic volumes are found by BIDS names in one folder per method, or are
columns of the table. Images lie in MNI152, or in the space of a T1 that the table names; each is interpolated at most
once, and not at all where it lies on the grid already. Measures are those of the suite's own methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from resdm.settings import SEXES, TRACERS, check_person
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.cohorts.leakage import LeakageError, check_leakage, check_shared_scans
from resdm_suite.cohorts.tables import images, read_sidecar, read_table, to_age, to_sex
from resdm_suite.evaluation.agreement import agreement_table
from resdm_suite.evaluation.faults import check_scale, find_faults
from resdm_suite.evaluation.image_quality import score_pair
from resdm_suite.evaluation.suvr import regional_agreement, regional_means, texture, texture_summary, to_suvr
from resdm_suite.paths import stem
from resdm_suite.preprocessing.resampling import resample
from resdm_suite.preprocessing.scans import open_image, read_scan
from resdm_suite.preprocessing.t1 import read_t1, t1_on_grid
from resdm_suite.profiles import Config

CONTROLS = {"template": DummyRegressor(), "demographics": LinearRegression()}
"""Controls without an MRI: the mean real PET of other people, and a regression of every voxel on age and sex."""

MIN_TRAINING = 20
"""Training people below which controls are not fitted on them: few give a worse control, which is easily beaten."""

FOLDS = 5
"""Parts of the people: where the table has no training people, controls are fitted on four and predict the fifth.

Classifiers of status need as many people of each class.
"""

_LOGISTIC = make_pipeline(StandardScaler(), LogisticRegression())
_CLASSIFIER = make_pipeline(PCA(0.9), StandardScaler(), LogisticRegression())  # components of 90 % of the variance
_KEYS = ["person", "session"]
_STATUS = {"": np.nan, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
_COLUMNS = (*_KEYS, "tracer", "age", "sex", "split", "label", "real", "t1w", "space")
_RESERVED = {*_COLUMNS, *CONTROLS, "line", "age_sex"}  # columns and sources of this module


class EvaluationError(ValueError):
    """Volumes that cannot be evaluated: names the file or the row of the table, the fault and the remedy."""


# ── which files belong together ───────────────────────────────────────────────────────────────────


def read_scans(table: Path) -> pd.DataFrame:
    """The table of scans as text; `EvaluationError` for a column that stands twice."""
    frame = read_table(table)
    if (twice := frame.columns.duplicated()).any():
        raise EvaluationError(f"{table}: column {', '.join(frame.columns[twice])} stands twice; keep one")
    return frame


def read_cases(
    table: str | Path, synthetic: Mapping[str, str | Path], config: Config, trained_on: Iterable[str] = ()
) -> pd.DataFrame:
    """The real scans of a table and the synthetic ones of each method.

    Parameters
    ----------
    table : path
        CSV: person, age, sex, the real PET in ``amyloid`` and ``tau`` (paths, relative to the table), and where known
        session, ``amyloid_status`` and ``tau_status`` (0, 1), split, ``t1w`` and ``space`` (``MNI152``). Manifests and
        ``volumes/index.csv`` of the suite are such tables. ``synthetic_amyloid`` and ``synthetic_tau`` name the volumes
        of a method ``synthetic``. Other columns are ignored.
    synthetic : mapping of str to path
        Name of a method → folder with its volumes, ``sub-…[_ses-…]_trc-…_pet.nii.gz``; ``trc-`` is a label of the
        profile, ``amyloid`` or ``tau``.
    config : Config
    trained_on : iterable of str
        People on whom a method was trained: they must not be evaluated.

    Returns
    -------
    DataFrame
        One row per session and tracer with a real PET: person, session, tracer, age, sex, split (``train`` or
        ``test``), label (status, NaN where unknown), real, t1w, space, and one column of paths per method. Validation
        people are left out, and training people if they are fewer than `MIN_TRAINING` for a tracer.

    Raises
    ------
    EvaluationError
        A cell that cannot be read, or a session without synthetic PET.
    LeakageError
        Training people among the evaluated ones, also under another name with the same scan.
    """
    table = Path(table)
    frame = read_scans(table)
    absent = [name for name in ("person", "age", "sex") if name not in frame]
    if absent or not {*TRACERS} & {*frame}:
        raise EvaluationError(f"{table}: no column {', '.join(absent) or 'amyloid or tau'}; found {', '.join(frame)}")
    named = any(f"synthetic_{tracer}" in frame for tracer in TRACERS)
    methods = [*synthetic, *["synthetic"] * named]
    if not methods or len({*methods} - _RESERVED) < len(methods) or "@" in "".join(methods):
        called = f"no method can be called {', '.join(methods)}; choose other names, each once and without @"
        none = "no synthetic PET; name a folder for each method, or give synthetic_<tracer>"
        raise EvaluationError(f"{table}: {called if methods else none}")
    files = {name: _find(Path(folder), config) for name, folder in synthetic.items()}
    rows = []
    for line, cells in frame.to_dict("index").items():
        known = _person(cells, f"{table}, row {line}") | {"line": line, "t1w": _path(table, cells, "t1w")}
        for tracer in (tracer for tracer in TRACERS if cells.get(tracer)):
            status = cells.get(f"{tracer}_status", "")
            if status not in _STATUS:
                raise EvaluationError(f"{table}, row {line}: {tracer}_status {status!r}; expected 0, 1 or nothing")
            row = known | {"tracer": tracer, "real": _path(table, cells, tracer), "label": _STATUS[status]}
            row |= {name: found.get((known["person"], known["session"], tracer)) for name, found in files.items()}
            rows.append(row | ({"synthetic": _path(table, cells, f"synthetic_{tracer}")} if named else {}))
    cases = pd.DataFrame(rows, columns=None if rows else [*_COLUMNS, "line", *methods])
    cases = cases.replace({"split": {"": "test"}})
    check_leakage(cases, str(table))
    cases = cases[cases["split"] != "validation"].reset_index(drop=True)
    _check_cases(cases, methods, str(table), {*trained_on})
    train = cases["split"] == "train"
    trained = cases[train].groupby("tracer")["person"].nunique().reindex(cases["tracer"].unique(), fill_value=0)
    few = train & (trained.min() < MIN_TRAINING)
    return cases[~few].drop(columns="line").reset_index(drop=True)


def _path(table: Path, cells: Mapping[str, str], column: str) -> Path | None:
    return table.parent / cells[column] if cells.get(column) else None


def _person(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    """Who and when, of one row."""
    person, session = cells["person"], cells.get("session", "")
    age, sex = to_age(cells["age"]), to_sex(cells["sex"])
    if not person or age is None or np.isnan(age) or not sex:
        raise EvaluationError(
            f"{where}: person {person!r}, age {cells['age']!r}, sex {cells['sex']!r}; expected a name, years and "
            f"{' or '.join(SEXES)}: the controls need them. Complete the row or leave it out"
        )
    check_person(age, sex, where)
    split = cells.get("split", "").lower()
    if split not in ("", "train", "validation", "test"):
        raise EvaluationError(f"{where}: split {split!r}; expected train, validation, test or nothing")
    names = {"person": f"sub-{person.removeprefix('sub-')}"}
    names["session"] = f"ses-{session.removeprefix('ses-')}" if session else ""
    return names | {"age": age, "sex": sex, "split": split, "space": cells.get("space", "")}


def _find(folder: Path, config: Config) -> dict[tuple[str, str, str], Path]:
    """Volumes of a folder by person, session and tracer."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; expected the synthetic PET of one method")
    tracers, found = config.cohort.tracers | {tracer: tracer for tracer in TRACERS}, {}
    for path in images(folder, "**/*"):
        entities = dict(part.partition("-")[::2] for part in stem(path.name).split("_"))
        tracer = tracers.get(entities.get("trc", ""))
        if "sub" not in entities or tracer is None or "std" in entities.get("desc", ""):
            continue
        key = f"sub-{entities['sub']}", f"ses-{entities['ses']}" if "ses" in entities else "", tracer
        if key in found and _in_mni(found[key]) == _in_mni(path):
            raise EvaluationError(f"{path}: a second volume of {' '.join(key)}, beside {found[key]}; keep one")
        if key not in found or _in_mni(path):  # of two spaces, MNI152
            found[key] = path
    return found


def _in_mni(path: Path, space: str = "") -> bool:
    return "MNI" in space or "_space-MNI" in path.name


def _check_cases(cases: pd.DataFrame, methods: list[str], where: str, trained_on: set[str]) -> None:
    """Refuse sessions that cannot be evaluated, and training people among those who are."""
    test = cases[cases["split"] == "test"]
    if test.empty:
        raise EvaluationError(f"{where}: nobody to evaluate; expected rows with a PET and split test or nothing")
    if (twice := cases.duplicated([*_KEYS, "tracer"])).any():
        row = cases[twice].iloc[0]
        raise EvaluationError(
            f"{where}, row {row['line']}: {row['person']} {row['session']} stands twice; keep one row"
        )
    for row in cases.to_dict("records"):
        if not row["real"].is_file():
            raise EvaluationError(f"{where}, row {row['line']}: {row['real']}: no such file; correct the path")
    for name in methods:
        absent = [row for row in test.to_dict("records") if not row[name] or not Path(row[name]).is_file()]
        if absent:
            row = absent[0]
            raise EvaluationError(
                f"{where}, row {row['line']}: no {row['tracer']} PET of {row['person']} {row['session']} by {name} "
                f"({len(absent)} of {len(test)} are missing); all methods are compared on the same people: add the "
                "volume, or leave the session out"
            )
    known = {f"sub-{str(person).removeprefix('sub-')}" for person in trained_on}
    if shared := sorted(known & {*test["person"]}):
        raise LeakageError(
            f"{where}: {len(shared)} evaluated people were trained on ({', '.join(shared[:5])}); leave them out"
        )
    scans = cases.pivot_table("real", _KEYS, "tracer", aggfunc="first").reindex(columns=TRACERS).reset_index()
    check_shared_scans(scans.astype(object).fillna("").assign(t1w="").astype(str), where, contents=True)


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reader:
    """Reads PET of any grid and scale as the suite stores it.

    Parameters
    ----------
    config : Config
        Its grid, ranges of SUVR and mask.
    scale : (low, high), optional
        SUVR of the values 0 and 1 in files whose sidecar states no unit; by default these are in SUVR.
    """

    config: Config
    scale: tuple[float, float] | None = None
    _registered: dict[Path, np.ndarray] = field(default_factory=dict, init=False, repr=False)  # T1 → (4, 4)

    @cached_property
    def grid(self) -> Grid:
        """The profile's grid."""
        return Grid.of(self.config.preprocess.grid)

    def read(self, path: Path, tracer: str, t1w: Path | None, space: str) -> np.ndarray:
        """A PET (X, Y, Z), float32, in [0, 1] on the grid, 0 outside the MNI brain.

        Raises `EvaluationError` for images scaled one by one, or of unknown space, `VolumeError` for no scan.
        """
        wanted, sidecar = self.config.preprocess.suvr_range[tracer], read_sidecar(path) or {}
        low, high = self.scale if self.scale and sidecar.get("Units") != "SUVR" else (0.0, 1.0)
        match sidecar.get("intensity"):
            case {"kind": "fixed", "suvr_range": [int() | float() as low, int() | float() as high]}:
                pass
            case {"kind": "minmax"}:
                raise EvaluationError(
                    f"{path}: its sidecar states that each image was scaled to its own range, so its SUVR is lost; "
                    "give volumes in SUVR"
                )
        header = open_image(path, header_only=True)
        same = header.shape == self.grid.shape and np.allclose(header.affine, self.grid.affine, atol=1e-3)
        if same and (low, high) == tuple(wanted):
            values = read_scan(path).data
        else:
            in_mni = same or _in_mni(path, space or sidecar.get("space", ""))
            to_file = np.eye(4) if in_mni else self._mni_to_t1(path, t1w)
            suvr = to_suvr(resample(read_scan(path), self.grid.affine, self.grid.shape, to_file), (low, high))
            values = (suvr - wanted[0]) / (wanted[1] - wanted[0])
        values = np.clip(values, 0, 1).astype(np.float32, copy=False)
        if self.config.preprocess.mask:
            values[~mni_map("brain", self.grid)] = 0
        return values

    def _mni_to_t1(self, path: Path, t1w: Path | None) -> np.ndarray:
        if t1w is None:
            raise EvaluationError(
                f"{path}: in an unknown space; write MNI152 in column space (or space-MNI152 in its name), or give in "
                "column t1w the T1 on which it lies"
            )
        if t1w not in self._registered:
            self._registered[t1w] = t1_on_grid(read_t1(t1w), self.config.preprocess, t1w)[1]
        return self._registered[t1w]

    def regional(self, path: Path, values: np.ndarray, tracer: str) -> dict[str, float]:
        """Regional SUVR of a real PET; as measured by the suite's preprocessing, where its sidecar has it."""
        stored = (read_sidecar(path) or {}).get("regional_suvr")
        return stored or regional_means(to_suvr(values, self.config.preprocess.suvr_range[tracer]), self.grid, tracer)


# ── measures ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Evaluation:
    """Measures of every method and control, one row per test session and tracer, or more.

    Parameters
    ----------
    scores : DataFrame
        As `resdm_suite.evaluation.image_quality.score_people`, with a first column method.
    regional, textures : DataFrame
        As `resdm_suite.evaluation.suvr.regional_suvr`.
    status : DataFrame
        As ``evaluation/status.csv``, with ``reading``: the score is the SUVR of the cortical ``summary``, or comes from
        a ``classifier`` fitted on real PET; source ``real`` is the real PET's, ``age_sex`` a logistic regression. Empty
        where no status is known.
    faults : DataFrame
        method, tracer, fault, detail: signs that volumes are flipped, shifted, rescaled or of other people.
    """

    scores: pd.DataFrame
    regional: pd.DataFrame
    textures: pd.DataFrame
    status: pd.DataFrame
    faults: pd.DataFrame


def evaluate(cases: pd.DataFrame, reader: Reader, *, progress: bool = True) -> Evaluation:
    """Measure every method of `read_cases`, and the `CONTROLS`, on the test people.

    Controls and classifiers are fitted on the table's training people; without them, on four fifths of the test people
    at a time to predict the last fifth, by person. Raises as `Reader.read`.
    """
    methods = [name for name in cases if name not in _COLUMNS]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in Evaluation.__dataclass_fields__}
    count = len(cases) + (len(methods) + len(CONTROLS)) * int((cases["split"] == "test").sum())
    with tqdm(total=count, desc="evaluation", unit="volume", disable=not progress) as bar:
        for tracer, rows in cases.groupby("tracer", sort=False):
            for name, frame in _evaluate_tracer(rows, tracer, methods, reader, bar).items():
                parts[name].append(frame)
    return Evaluation(**{name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()})


def _evaluate_tracer(
    cases: pd.DataFrame, tracer: str, methods: list[str], reader: Reader, bar: tqdm
) -> dict[str, pd.DataFrame]:
    grid, suvr_range = reader.grid, reader.config.preprocess.suvr_range[tracer]
    brain = mni_map("brain", grid)
    train, test = (cases[cases["split"] == split] for split in ("train", "test"))
    people = pd.concat([train, test], ignore_index=True)
    age_and_sex = np.column_stack([people["age"], people["sex"].map(SEXES.index)]).astype(float)

    def read(rows: pd.DataFrame, column: str) -> list[np.ndarray]:
        """Volumes in their own order in memory, in which sums are those of `score_people` to the last bit."""
        volumes = []
        for row in rows.to_dict("records"):
            volumes.append(reader.read(Path(row[column]), tracer, row["t1w"], row["space"]))
            bar.update()
        return volumes

    known, real = read(train, "real"), read(test, "real")
    voxels = np.array([volume[brain] for volume in [*known, *real]])  # (N, V), in the order of people
    check_scale("the real PET", tracer, real, grid, suvr_range)
    everyone, labelled = np.ones(len(people), bool), _labelled(people)
    controls = {name: _fits(CONTROLS[name], people, everyone, age_and_sex, voxels) for name in CONTROLS}
    label, shown = people["label"].to_numpy(), age_and_sex[len(train) :]
    classifier = _fits(_CLASSIFIER, people, labelled, voxels, label)
    classified = {"real": _predicted(classifier, voxels[len(train) :])}
    classified["age_sex"] = _predicted(_fits(_LOGISTIC, people, labelled, age_and_sex, label), shown)
    regional = [reader.regional(*pair, tracer) for pair in zip(test["real"], real, strict=True)]
    rows: dict[str, list[dict[str, Any]]] = {"scores": [], "regional": [], "textures": [], "faults": []}
    for name in [*methods, *CONTROLS]:
        if name in methods:
            synthetic = read(test, name)
            rows["faults"] += find_faults(name, tracer, real, synthetic, test["person"].tolist(), grid, suvr_range)
        else:
            synthetic = np.zeros((len(test), *grid.shape), np.float32)
            synthetic[:, brain] = _predicted(controls[name], shown).clip(0, 1)
        classified[name] = _predicted(classifier, np.array([volume[brain] for volume in synthetic]))
        for row, *volumes, means in zip(test[_KEYS].to_dict("records"), real, synthetic, regional, strict=True):
            head = {"method": name, **row, "tracer": tracer}
            rows["scores"] += [head | scores for scores in score_pair(*volumes, brain)]
            suvr = [to_suvr(volume, suvr_range) for volume in volumes]
            rows["textures"].append(head | {"texture": texture(*suvr, brain)})
            for region, mean in regional_means(suvr[1], grid, tracer).items():
                rows["regional"].append(head | {"region": region, "real": means[region], "synthetic": mean})
    frames = {name: pd.DataFrame(part) for name, part in rows.items()}
    frames["faults"] = frames["faults"].reindex(columns=["method", "tracer", "fault", "detail"])
    return frames | {"status": _status(test, frames["regional"], classified)}


def summary_agreement(result: Evaluation) -> pd.DataFrame:
    """Agreement of the summary SUVR by method and tracer, with ``regional_r`` (mean over regions) and ``texture``.

    The columns are those of `resdm_suite.evaluation.agreement.agreement_table`.
    """
    keys = ["method", "tracer"]
    table = agreement_table(result.regional[result.regional["region"] == "summary"], keys)
    regional = regional_agreement(result.regional).groupby(keys)["r"].mean().rename("regional_r")
    textures = texture_summary(result.textures).set_index(keys)["mean"].rename("texture")
    return table.join(regional, keys).join(textures, keys)


def _labelled(people: pd.DataFrame) -> np.ndarray:
    """Rows on which classifiers of status are fitted: of training people, or else of test people, or else none."""
    for split in ("train", "test"):
        rows = (people["split"] == split) & people["label"].notna()
        persons = people[rows].groupby("label")["person"].nunique()
        if persons.reindex([0, 1], fill_value=0).min() >= FOLDS:
            return rows.to_numpy()
    return np.zeros(len(people), bool)


def _fits(
    estimator: BaseEstimator, people: pd.DataFrame, used: np.ndarray, features: np.ndarray, target: np.ndarray
) -> list[tuple[BaseEstimator, np.ndarray]]:
    """Fits on the used rows of training people, or else of the test people in other folds.

    Features and target follow people, training people first. Each fit comes with the test people that it predicts.
    """
    train = (people["split"] == "train").to_numpy()
    test = people[~train]
    if not used.any():
        return []
    if (train & used).any():
        splits = [(np.flatnonzero(train & used), np.arange(len(test)))]
    else:
        rows = np.flatnonzero(used)
        persons = people["person"].iloc[rows]
        folds = min(FOLDS, persons.nunique())
        if folds < 2:
            raise EvaluationError("one person to evaluate and nobody to fit the controls on; give two people or more")
        folder = StratifiedGroupKFold if is_classifier(estimator) else GroupKFold  # both classes in every fit
        parts = folder(folds).split(rows, target[rows], persons)
        splits = [(rows[fit], rows[left_out] - train.sum()) for fit, left_out in parts]
    return [(clone(estimator).fit(features[fit], target[fit]), rows) for fit, rows in splits]


def _predicted(fits: list[tuple[BaseEstimator, np.ndarray]], features: np.ndarray) -> np.ndarray:
    """Predictions, or the probability of class 1, of the test people by their features; NaN without a fit of others."""
    if not fits:
        return np.full(len(features), np.nan)
    parts = [  # rounded: a matrix product gives equal rows different last bits, and so ranks equal volumes
        model.predict_proba(features[rows])[:, 1].round(9) if is_classifier(model) else model.predict(features[rows])
        for model, rows in fits
    ]
    found = np.concatenate(parts)
    answers = np.full((len(features), *found.shape[1:]), np.nan, found.dtype)
    answers[np.concatenate([rows for _, rows in fits])] = found
    return answers


def _status(test: pd.DataFrame, regional: pd.DataFrame, classified: dict[str, np.ndarray]) -> pd.DataFrame:
    """Readings of every source for the sessions of known status, by the summary SUVR and by the classifier."""
    who = test[[*_KEYS, "age", "sex", "tracer", "label"]].assign(fold=0, target="label", threshold=np.nan)
    summary = regional[regional["region"] == "summary"]
    real = summary[summary["method"] == summary["method"].iloc[0]].assign(method="real", synthetic=summary["real"])
    scores = pd.concat([real, summary]).rename(columns={"method": "source", "synthetic": "score"})
    frames = [who.merge(scores[["source", *_KEYS, "score"]], on=_KEYS).assign(reading="summary")]
    frames += [who.assign(source=name, score=score, reading="classifier") for name, score in classified.items()]
    frames.append(who.assign(source="age_sex", score=classified["age_sex"], reading="summary"))
    table = pd.concat(frames, ignore_index=True)
    return table[table["label"].notna() & table["score"].notna()].astype({"label": int}).reset_index(drop=True)
