"""Table 4, Figures 4 and 5: evaluators fitted on real scans read synthetic PET.

**Status** (Table 4). The paper states "five-fold" and "pre-trained" and defines neither. Here the *training* people are
divided into folds, by person. For each fold DSNet is fitted on the real PET of the others, its threshold is set on the
real PET of the fold (`youden`), and it scores the real and every method's synthetic PET of the test people, on whom
neither it nor a synthesiser was trained. The template is scored too, and controls that show whether synthesis adds
anything: a ridge regression on the voxels of the MRI, a logistic regression on age and sex, and the more frequent
class. DSNet on the MRI was no better than the regression on held-out training people (docs/method.md).

Status is the label that a cut-off on the measured SUVR gives. In phantoms it is also the planted one, with separate
classifiers and thresholds: a cut-off label depends on age and sex as well, as far as they change the SUVR.

**Sex and age** (Figures 4 and 5). One classifier and one brain-age network for each tracer, fitted on the real PET of
all training people but the first fold, on which the threshold, or the mean error, is set. They score the test people's
real PET and the synthetic one of every finished condition.

Validation people are not used, and nothing is chosen on the test people.

Where notebooks only read (`resdm_suite.profiles.READING`), the stored readings are taken as they are. They need no
torch, so it is imported where an evaluator is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import KernelPCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from resdm.io import write_csv
from resdm.settings import TRACERS, derive_seed
from resdm_suite.anatomy import Grid
from resdm_suite.cohorts.leakage import LeakageError
from resdm_suite.evaluation.image_quality import read_index, volume_pairs
from resdm_suite.evaluation.planted import read_causes
from resdm_suite.evaluation.readings import COLUMNS, SESSION, readings_path
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.evaluation.stored import Numbers, read_sidecar, read_table, read_volume
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import READING, Config
from resdm_suite.records import NAME, alone, checked, write_record

if TYPE_CHECKING:
    from torch import Tensor

    from resdm_suite.evaluation.fitting import Evaluator


class UndefinedError(ValueError):
    """A target that these people do not define, of one class or without a scan: names the file and the remedy."""


_PENALTIES = np.logspace(-2, 3, 11)  # of the MRI's ridge regression

_MIN_VARIANCE = 1e-4  # of a voxel's intensity over training sessions

_CARD = {"quality": "held_out_auc", "p": "held_out_p", "offset": "threshold"}
"""`Evaluator.card` → columns of a classifier."""

Fold = tuple[np.ndarray, np.ndarray]
"""Rows to train on, rows held out."""


# ── people ────────────────────────────────────────────────────────────────────────────────────────


def labelled(config: Config, split: str, tracer: str, target: str) -> pd.DataFrame:
    """The sessions of a split (``train`` or ``test``) that have a tracer's PET and a label.

    ``target`` is ``label`` or ``planted`` (the tracer's status: its label, or the planted one of phantoms), ``sex``
    or ``age``. Rows of ``index.csv`` with a column ``label``: status 0 or 1; 1 for M; years. Raises `ValueError` where
    a column is missing, no session is left, or a phantom has no planted status.
    """
    index = read_index(config, split)
    path, column = config.volumes / "index.csv", target
    if target in ("label", "planted"):
        column = f"{tracer}_status" if target == "label" else f"{tracer}_positive"
    if target == "planted":
        index = index.merge(read_causes(config)[[*SESSION, column]], how="left", validate="one_to_one")
        unknown = index[(index[f"present_{tracer}"] == 1) & index[column].isna()]
        if len(unknown):
            raise ValueError(
                f"{config.work / 'truth' / 'people.csv'}: no {column} of {' '.join(unknown.iloc[0][SESSION])}, whose "
                "PET is there: these volumes are not of these phantoms; preprocess them again"
            )
    missing = [name for name in (column, "age", "sex", "t1w") if name not in index]
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; run the preprocessing again")
    rows = index[(index[f"present_{tracer}"] == 1) & index[column].notna()].reset_index(drop=True)
    if rows.empty:
        fault = f"no {split} session has both {tracer} PET and {column}"
        raise UndefinedError(f"{path}: {fault}; fill in {column} in the manifest, or the SUVR that it is made of")
    return rows.assign(label=((rows["sex"] == "M") if target == "sex" else rows[column]).astype(float))


def status_of_test_people(config: Config) -> pd.DataFrame:
    """Person, session, tracer, label: the planted status of phantoms, else that of the cohort; see `labelled`."""
    target = _targets(config)[-1]
    columns = [*SESSION, "tracer", "label"]

    def read(tracer: str) -> pd.DataFrame:
        return labelled(config, "test", tracer, target).assign(tracer=tracer)[columns]

    parts = _defined([(tracer,) for tracer in TRACERS], read, required=False)
    return pd.concat(parts.values()) if parts else pd.DataFrame(columns=columns)


def draw_folds(config: Config, train: pd.DataFrame, name: str) -> list[Fold]:
    """Folds of the training sessions (see `labelled`): by person, classes in proportion, by the profile's seed.

    ``name`` is the classification task, for the seed and for messages. Ages are stratified above and below their
    median. Raises `ValueError` where a fold would lack a class, and see `check_folds`.
    """
    n = config.evaluation.folds
    classes = train["label"] if train["label"].isin((0, 1)).all() else train["label"] > train["label"].median()
    classes = classes.to_numpy(dtype=int)
    people = [train["person"][classes == value].nunique() for value in (0, 1)]
    where = f"{config.volumes / 'index.csv'}: {name}: {people[0]} and {people[1]} training people of the two classes"
    remedy = "set a smaller evaluation.folds, or take more people"
    if min(people) < n:
        fault = f"are too few for {n} folds; {remedy}" if min(people) else "are one class only; take people of both"
        raise UndefinedError(f"{where} {fault}")
    seed = derive_seed(config.seed, "evaluation", "folds", name) % 2**32  # scikit-learn's largest
    folds = list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(classes, classes, train["person"]))
    if any(len(set(classes[part])) < 2 for fold in folds for part in fold):
        raise UndefinedError(f"{where}: a fold has one class only; {remedy}")
    check_folds(train, folds, read_index(config, None))
    return folds


def check_folds(train: pd.DataFrame, folds: Iterable[Fold], index: pd.DataFrame) -> None:
    """Raise `LeakageError` where a person outside the training split is trained on, or one is in two folds.

    ``train`` holds the sessions whose rows the folds name; ``index`` all sessions, also visits without a label.
    """
    others = set(index.loc[index["split"] != "train", "person"])
    seen: dict[str, int] = {}
    for number, rows in enumerate(folds):
        fitted, held_out = (set(train["person"].iloc[part]) for part in rows)
        for who in sorted((fitted | held_out) & others):
            raise LeakageError(f"{who} is in fold {number} and in another split than train; split by person again")
        for who in sorted(fitted & held_out):
            raise LeakageError(f"fold {number}: {who} would be trained on and held out; fold by person")
        for who in sorted(held_out & seen.keys()):
            raise LeakageError(f"{who} is held out in the folds {seen[who]} and {number}; fold by person")
        seen |= dict.fromkeys(held_out, number)


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────


def read_volumes(config: Config, paths: Iterable[Path]) -> Tensor:
    """Stored volumes as one tensor (n, 1, X, Y, Z), float32, in [0, 1]."""
    import torch

    grid = Grid.of(config.preprocess.grid)
    return torch.from_numpy(np.stack([read_volume(path, grid) for path in paths]))[:, None]


def _real(config: Config, rows: pd.DataFrame, column: str) -> list[Path]:
    return [config.volumes / path for path in rows[column]]


def _synthetic(config: Config, method: str, rows: pd.DataFrame, tracer: str, condition: str = "factual") -> list[Path]:
    pairs = volume_pairs(config, method, rows, condition)
    return [synthetic for _, _, which, _, synthetic in pairs if which == tracer]


def conditions(config: Config, method: str) -> list[str]:
    """The profile's conditions under which a method's synthesis is finished, that is, has its ``scores.csv``."""
    names = sorted({"factual", *config.conditions})
    return [name for name in names if (config.predictions(method, name) / "scores.csv").is_file()]


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────


def _targets(config: Config) -> tuple[str, ...]:
    return ("label", "planted") if config.cohort.kind == "phantom" else ("label",)


def _status_folds(config: Config, tracer: str, target: str) -> tuple[pd.DataFrame, list[Fold]]:
    train = labelled(config, "train", tracer, target)
    return train, draw_folds(config, train, f"{tracer} {'status' if target == 'label' else 'planted status'}")


def _status_evaluators(config: Config, tracer: str, target: str, source: str, bar: tqdm) -> list[Evaluator]:
    """One classifier per fold, on ``real`` (the tracer's PET), ``mri`` or ``age_sex``; all have the same folds."""
    from resdm_suite.evaluation.fitting import classifier, fit_evaluator

    train, folds = _status_folds(config, tracer, target)
    people, labels = train["person"].to_numpy(), train["label"].to_numpy()
    if source == "real":
        scans = cache(partial(read_volumes, config, _real(config, train, tracer)))
        name = f"{target}_{tracer}_{source}"
        return [
            fit_evaluator(config, "status", f"{name}_{k}", scans, people, labels, fold, bar.update)
            for k, fold in enumerate(folds)
        ]
    fit, inputs = _fit_age_and_sex, _age_and_sex(train)
    if source == "mri":
        fit, inputs = _fit_mri, read_volumes(config, _real(config, train, "t1w"))
    evaluators = []
    for rows, held_out in folds:
        answer = fit(inputs[rows], labels[rows], people[rows])
        scores = answer(inputs[held_out])
        evaluators.append(classifier(answer, len(rows), people[held_out], labels[held_out], scores))
    return evaluators


def _prior_evaluator(config: Config, tracer: str, target: str, bar: tqdm) -> Evaluator:
    """The classifier of sex, or the brain-age network, of one tracer's PET."""
    from resdm_suite.evaluation.fitting import fit_evaluator

    train = labelled(config, "train", tracer, target)
    scans = partial(read_volumes, config, _real(config, train, tracer))
    fold = draw_folds(config, train, f"{target} in {tracer} PET")[0]
    people, labels = train["person"].to_numpy(), train["label"].to_numpy()
    return fit_evaluator(config, target, f"{target}_{tracer}", scans, people, labels, fold, bar.update)


def _shares(config: Config, tracer: str, target: str) -> list[float]:
    """Share of positives among each fold's training people."""
    train, folds = _status_folds(config, tracer, target)
    parts = [train.iloc[rows] for rows, _ in folds]
    return [float(np.average(part["label"], weights=person_weights(part["person"]))) for part in parts]


def _age_and_sex(rows: pd.DataFrame) -> np.ndarray:
    return np.column_stack([rows["age"], rows["sex"] == "M"]).astype(float)  # (n, 2)


def _fit_age_and_sex(table: np.ndarray, labels: np.ndarray, people: np.ndarray) -> Callable[[Any], np.ndarray]:
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, labels)
    return lambda table: model.predict_proba(table)[:, 1]


_one_thread = threadpool_limits.wrap(limits=1)
"""Decorator: BLAS sums in another order with more threads, so a notebook run by hand would print other last digits."""


@_one_thread
def _fit_mri(volumes: Tensor, labels: np.ndarray, people: np.ndarray) -> Callable[[Any], np.ndarray]:
    """A linear probability model of all voxels: ridge regression of the label, its penalty chosen by folds of people.

    Voxels are standardised; those that hardly vary are left out. The principal components of the kernel ⟨x, y⟩ / voxels
    hold all that a linear model can use, and are no more than the sessions. Least squares minimises the Brier score;
    predictions outside [0, 1] are clipped.
    """
    inner = GroupKFold(min(5, len(set(people))))
    search = GridSearchCV(Ridge(), {"alpha": _PENALTIES}, cv=inner, scoring="neg_mean_squared_error")
    kernel = KernelPCA(kernel="poly", degree=1, coef0=0)
    model = make_pipeline(VarianceThreshold(_MIN_VARIANCE), StandardScaler(), kernel, search)
    model.fit(volumes.flatten(1).numpy(), labels, gridsearchcv__groups=people)
    return _one_thread(lambda volumes: model.predict(volumes.flatten(1).numpy()).clip(0, 1))


def _progress(config: Config, targets: Iterable[str], shown: bool) -> tqdm:
    """A bar over the epochs of all evaluators of some targets; sets up the CPU as training does."""
    from resdm.cpu_runtime import set_up

    set_up(config.training)
    status = len(_targets(config)) * len(TRACERS) * config.evaluation.folds
    fits = {"status": status, "sex": len(TRACERS), "age": len(TRACERS)}
    total = sum(fits[target] * getattr(config.evaluation, target).epochs for target in targets)
    return tqdm(total=total, desc=f"evaluators: {', '.join(targets)}", unit="epoch", disable=not shown)


@alone("evaluators")
def fit_evaluators(config: Config, *, progress: bool = True) -> Path:
    """Fit every evaluator and store it below ``evaluation/models``, which is returned.

    No prediction is needed, so evaluators can be fitted while the methods train.
    """
    with _progress(config, ("status", "sex", "age"), progress) as bar:

        def work(target: str, tracer: str) -> None:
            if target in ("sex", "age"):
                _prior_evaluator(config, tracer, target, bar)
            else:
                _status_evaluators(config, tracer, target, "real", bar)

        _defined([*product((*_targets(config), "sex", "age"), TRACERS)], work)
    return config.evaluation_folder / "models"


# ── the three protocols ───────────────────────────────────────────────────────────────────────────


def evaluate_status(config: Config, *, progress: bool = True) -> Path:
    """Table 4: score everyone's status from every source, fold by fold, and store ``evaluation/status.csv``.

    Sources are ``real`` PET, every method of the profile that has factual predictions, ``template``, in phantoms the
    ``ceiling`` where it is synthesised and its ``posterior``, and the controls ``mri``, ``age_sex`` and ``majority``
    (for everyone the share of positives among the fold's training people). All have the same sessions.

    Columns are those of `COLUMNS`; target is ``label``, in phantoms also ``planted``. Beside it ``status_folds.csv``
    holds the quality of each fold's evaluators: n_train, n_held_out (sessions), held_out_auc, held_out_p (one-sided,
    against chance, over people). A target and tracer that these people do not define (one class, too few people) has no
    reading and one row of it, without a quality; where none is defined, ``status.csv`` has no row. Raises
    `LeakageError` (see `check_folds`), and `ValueError` or `FileNotFoundError` for a broken volume or a session without
    posterior.
    """
    if READING:
        return checked(readings_path(config, "status"))
    with _progress(config, ("status",), progress) as bar:
        cases = list(product(_targets(config), TRACERS))
        defined = _defined(cases, lambda target, tracer: _read_status(config, target, tracer, bar), required=False)
    none = {"fold": 0, "source": "real", "n_train": 0, "n_held_out": 0}
    left_out = [none | {"target": case[0], "tracer": case[1]} for case in cases if case not in defined]
    folds = pd.DataFrame([row for _, rows in defined.values() for row in rows] + left_out).rename(columns=_CARD)
    readings = [part for parts, _ in defined.values() for part in parts] or [pd.DataFrame()]
    return _write(config, "status", pd.concat(readings), folds)


def _defined(
    cases: Iterable[tuple[str, ...]], work: Callable[..., Any], *, required: bool = True
) -> dict[tuple[str, ...], Any]:
    """Results by case of a function of each case, without those that the people do not define: these are printed.

    Raises `UndefinedError` where none is left, if one is ``required``.
    """
    done, reasons = {}, []
    for case in cases:
        try:
            done[case] = work(*case)
        except UndefinedError as error:
            reasons.append(str(error))
    if required and not done:
        raise UndefinedError("; ".join(dict.fromkeys(reasons)))
    for reason in dict.fromkeys(reasons):
        tqdm.write(f"not evaluated: {reason}")
    return done


def _read_status(
    config: Config, target: str, tracer: str, bar: tqdm
) -> tuple[list[pd.DataFrame], list[dict[str, Any]]]:
    """Scores of the test sessions from every source, and the quality of the evaluators."""
    scores, folds = [], []
    test = labelled(config, "test", tracer, target)
    who = test[[*SESSION, "age", "sex"]].assign(target=target, tracer=tracer, label=test["label"].astype(int))
    for fitted_on, sources in _status_inputs(config, test, tracer).items():
        evaluators = _status_evaluators(config, tracer, target, fitted_on, bar)
        head = {"target": target, "source": fitted_on, "tracer": tracer}
        folds += [{"fold": k} | head | one.card for k, one in enumerate(evaluators)]
        for source, paths in sources.items():
            # The template is one volume: in batches of other sizes its score would differ in the last digits.
            inputs = _age_and_sex(test) if paths is None else read_volumes(config, dict.fromkeys(paths))
            for k, one in enumerate(evaluators):
                score = np.broadcast_to(one.answer(inputs), len(test))
                scores.append(who.assign(fold=k, source=source, score=score, threshold=one.offset))
    stated: dict[str, list] = {"majority": _shares(config, tracer, target)}  # by fold, without an evaluator
    if target == "planted" and (posterior := _posterior(config, test, tracer)) is not None:
        stated["posterior"] = [posterior] * config.evaluation.folds
    for source, by_fold in stated.items():
        scores += [who.assign(fold=k, source=source, score=one, threshold=0.5) for k, one in enumerate(by_fold)]
    return scores, folds


def _status_inputs(config: Config, test: pd.DataFrame, tracer: str) -> dict[str, dict[str, list[Path] | None]]:
    """Volumes of the test sessions by source, grouped by what their evaluators are fitted on; none for age and sex."""
    methods = [name for name in (*config.methods, "ceiling") if "factual" in conditions(config, name)]
    pets = {"real": _real(config, test, tracer)}
    pets |= {name: _synthetic(config, name, test, tracer) for name in (*methods, "template")}
    return {"real": pets, "mri": {"mri": _real(config, test, "t1w")}, "age_sex": {"age_sex": None}}


def _write(config: Config, name: str, frame: pd.DataFrame, folds: pd.DataFrame) -> Path:
    """Store readings and their evaluators with the columns of `COLUMNS`; the path of the readings."""
    made = [
        write_csv(readings_path(config, file), table.reindex(columns=list(COLUMNS[file])), "%.9g")
        for file, table in ((f"{name}_folds", folds), (name, frame))
    ]
    notebook = {"status": "06_table4_diagnosis", "sex": "07_figure4_gender", "age": "08_figure5_age"}[name]
    methods = (*config.methods, "ceiling")
    scored = [config.predictions(method, one) for method in methods for one in conditions(config, method)
              if one == "factual" or name != "status"]  # fmt: skip
    inputs = [config.volumes / "index.csv", config.volumes / "cohort.json", *(one / "scores.csv" for one in scored)]
    write_record(config.evaluation_folder, f"notebooks/{notebook}.ipynb", made, inputs, name=f".{name}{NAME}")
    return made[-1]


def _posterior(config: Config, test: pd.DataFrame, tracer: str) -> np.ndarray | None:
    """The ceiling's probability of planted status, by session; ``None`` where it is not stored."""
    path = config.predictions("ceiling") / "latent.csv"
    if not path.is_file():
        return None
    columns = {"person": str, "session": str, "tracer": TRACERS, "positive": Numbers(0, 1)}
    latent = read_table(path, columns, [*SESSION, "tracer"], "posterior", f"`resdm ceiling {config.profile}`")
    rows = test[SESSION].merge(latent[latent["tracer"] == tracer], on=SESSION, how="left", validate="one_to_one")
    if rows["positive"].isna().any():
        who = " ".join(rows.loc[rows["positive"].isna(), SESSION].iloc[0])
        raise ValueError(f"{path}: no {tracer} probability of {who}; run `resdm ceiling {config.profile}` again")
    return rows["positive"].to_numpy()


def evaluate_sex(config: Config, *, progress: bool = True) -> Path:
    """Figure 4: the sex that a classifier of real PET reads in the test people's real and synthetic PET.

    Stores ``evaluation/sex.csv``, with score (probability of M) and prompt (the sex in the prompt; empty for none), and
    ``sex_folds.csv``.
    """
    return _evaluate_prompted(config, "sex", {}, _CARD, progress)


def evaluate_age(config: Config, *, progress: bool = True) -> Path:
    """Figure 5: the age that a network fitted on real PET reads in the test people's real and synthetic PET.

    Stores ``evaluation/age.csv``, with prompt_age (in the prompt; empty for none) and predicted (years, less the mean
    error ``bias`` on held-out people), and ``age_folds.csv``.
    """
    names = {"label": "age", "prompt": "prompt_age", "score": "predicted"}
    return _evaluate_prompted(config, "age", names, _CARD | {"quality": "held_out_r", "offset": "bias"}, progress)


def _evaluate_prompted(
    config: Config, target: str, names: dict[str, str], card: dict[str, str], progress: bool
) -> Path:
    """Store scores of real PET and of every method's finished conditions by the evaluators of ``target``; the path.

    ``names`` and ``card`` rename columns of the scores and of `Evaluator.card`.
    """
    if READING:
        return checked(readings_path(config, target))
    pairs = [(method, condition) for method in config.methods for condition in conditions(config, method)]

    def read(tracer: str) -> tuple[list[pd.DataFrame], dict[str, Any]]:
        test = labelled(config, "test", tracer, target)
        evaluator = _prior_evaluator(config, tracer, target, bar)
        who, frames = test[[*SESSION, "label"]].assign(tracer=tracer, threshold=evaluator.offset), []
        for source, condition in [("real", "real"), *pairs]:
            if source == "real":
                paths, prompts = _real(config, test, tracer), None
            else:
                paths = _synthetic(config, source, test, tracer, condition)
                prompts = [_prompt(path, target) for path in paths]
            scores = evaluator.answer(read_volumes(config, paths))
            frames.append(who.assign(source=source, condition=condition, score=scores, prompt=prompts))
        return frames, {"tracer": tracer} | evaluator.card

    with _progress(config, (target,), progress) as bar:
        parts, cards = zip(*_defined([(tracer,) for tracer in TRACERS], read).values(), strict=True)
    frame = pd.concat([frame for frames in parts for frame in frames]).rename(columns=names)
    return _write(config, target, frame, pd.DataFrame(cards).rename(columns=card))


def _prompt(path: Path, target: str) -> Any:
    prompt = read_sidecar(path).get("prompt")
    if not isinstance(prompt, dict) or target not in prompt:
        raise ValueError(f"{sidecar_path(path)}: no prompt with {target!r}; synthesise again")
    return prompt[target]
