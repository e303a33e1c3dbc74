"""Fit an evaluator on real scans once, and apply it to others.

Fitted evaluators are stored below ``work/<profile>/evaluation/models/`` as safetensors, with the inputs they depend on;
a killed run continues with the next evaluator. On a CPU the same seed gives the same bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from resdm.io import sha256
from resdm.settings import derive_seed, to_dict
from resdm.weights import read_weights, save_weights
from resdm_suite.evaluation.agreement import pearson
from resdm_suite.evaluation.networks import BrainAge, DSNet
from resdm_suite.profiles import Config, EvaluatorConfig

REVISION = 1
"""Raise it when networks or fitting change in a way that changes results: stored evaluators are then refitted."""

Network = DSNet | BrainAge


@dataclass(frozen=True)
class Evaluator:
    """A fitted evaluator and its quality on held-out real people.

    Parameters
    ----------
    answer : callable
        Inputs of n sessions, volumes (n, 1, X, Y, Z) in [0, 1] for a network → (n,): probability of the positive
        class, or age in years, less the mean error on the held-out sessions.
    n_train, n_held_out : int
        Sessions.
    quality : float
        On the held-out people, whose visits are averaged: AUC of a classifier; Pearson's r of a brain age, NaN for
        constant answers.
    p : float
        One-sided p of that quality against chance, over people: Mann–Whitney, or of r; 1 for constant ages.
    offset : float
        From the held-out sessions: a classifier's threshold (`youden`), or the mean error of a brain age in years.
    """

    answer: Callable[[Any], np.ndarray]
    n_train: int
    n_held_out: int
    quality: float
    p: float
    offset: float

    @property
    def card(self) -> dict[str, float]:
        """All but the answer."""
        return {key: getattr(self, key) for key in ("n_train", "n_held_out", "quality", "p", "offset")}


def youden(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of largest sensitivity + specificity − 1; positive is a score at or above it.

    It is the middle between two neighbouring scores, of equal choices the highest: a score itself would put the
    threshold at the edge of one class.
    """
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)  # the first threshold is infinite
    index = (true - false)[1:]
    best = 1 + int(np.argmax(index >= index.max() - 1e-9))  # equal but for rounding
    return float(thresholds[best : best + 2].mean())


def shifted(volumes: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    """Each volume (n, 1, X, Y, Z) shifted by −most … most voxels along each axis, padded with 0."""
    if not most:
        return volumes
    X, Y, Z = volumes.shape[2:]
    corners = rng.integers(0, 2 * most + 1, (len(volumes), 3)).tolist()
    padded = zip(F.pad(volumes, [most] * 6), corners, strict=True)
    return torch.stack([volume[:, i : i + X, j : j + Y, k : k + Z] for volume, (i, j, k) in padded])


def fit(
    network: Network,
    volumes: Tensor,
    targets: Tensor,
    settings: EvaluatorConfig,
    seed: int,
    on_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train a network in place: AdamW, cosine decay, no weights of classes or people; the result is the last weights.

    ``volumes`` (n, 1, X, Y, Z) are on the CPU, in [0, 1]; ``targets`` (n,) are 0 and 1, or ages in years; ``seed`` is
    that of order and shifts.
    """
    device, rng = next(network.parameters()).device, np.random.default_rng(seed)
    batches = math.ceil(len(volumes) / settings.batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches * settings.epochs)
    network.train()
    for _ in range(settings.epochs):
        for rows in np.array_split(rng.permutation(len(volumes)), batches):
            batch = shifted(volumes[rows], settings.shift_voxels, rng)
            loss = network.loss(batch.to(device), targets[rows].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        on_epoch()
    network.eval()


@torch.no_grad()
def predict(network: Network, volumes: Tensor) -> np.ndarray:
    """A fitted network's answers for volumes (n, 1, X, Y, Z): (n,), float64."""
    device = next(network.parameters()).device
    answers = [network.predict(some.to(device)) for some in volumes.split(8)]
    return torch.cat(answers).double().cpu().numpy()


def classifier(
    answer: Callable[[Any], np.ndarray], n_train: int, people: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> Evaluator:
    """A classifier with the threshold of the held-out sessions' ``labels`` and ``scores``.

    Visits of one person are not independent: quality and its p use one mean score per person, or one for each label
    where that changed between visits.
    """
    means = pd.Series(scores).groupby([people, labels]).mean()
    label, score = means.index.get_level_values(1).to_numpy(), means.to_numpy()
    p = float(mannwhitneyu(score[label == 1], score[label == 0], alternative="greater").pvalue)
    return Evaluator(answer, n_train, len(labels), float(roc_auc_score(label, score)), p, youden(labels, scores))


def regressor(
    answer: Callable[[Any], np.ndarray], n_train: int, people: np.ndarray, ages: np.ndarray, scores: np.ndarray
) -> Evaluator:
    """A brain age without its mean error on the held-out sessions; its slope is unchanged.

    Quality and its p use one mean age and one mean score per person.
    """
    bias = float(np.mean(scores - ages))
    means = pd.DataFrame({"age": ages, "score": scores}).groupby(people).mean()
    r = pearson(means["age"], means["score"]).value
    p = 1.0 if math.isnan(r) else float(pearsonr(means["age"], means["score"], alternative="greater").pvalue)
    return Evaluator(lambda x: answer(x) - bias, n_train, len(ages), r, p, bias)


def fit_evaluator(
    config: Config,
    target: str,
    name: str,
    volumes: Callable[[], Tensor],
    people: np.ndarray,
    targets: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    on_epoch: Callable[[], Any] = lambda: None,
) -> Evaluator:
    """A fitted evaluator: the stored one of the same `REVISION`, settings and data, or a new one.

    Parameters
    ----------
    config : Config
    target : {"status", "sex", "age"}
        `DSNet` for the first two, `BrainAge` for the last, by the settings of that name in ``evaluation``.
    name : str
        Of its file, and part of its seed.
    volumes : callable
        Gives the sessions' volumes (n, 1, X, Y, Z); not called where the evaluator is stored.
    people, targets : ndarray (n,)
        The person of each session; labels 0 and 1, or ages in years.
    fold : tuple of ndarray
        Rows to train on, rows held out.
    on_epoch : callable
        Called once for each epoch, those of a stored evaluator too.
    """
    settings, (train, held_out) = getattr(config.evaluation, target), fold
    path = config.evaluation_folder / "models" / f"{name}.safetensors"
    made_of = {"name": name, "settings": to_dict(settings), "seed": config.seed, "data": _data(config)}
    made_of |= {"preprocess": config.digest("preprocess"), "train": train.tolist(), "held_out": held_out.tolist()}
    made_of["revision"] = REVISION
    network = _fresh(config, target, derive_seed(config.seed, "evaluation", name), targets[train])
    scores = _stored(path, made_of, network)
    if scores is None:
        scans, truth = volumes(), torch.tensor(targets, dtype=torch.float32)
        seed = derive_seed(config.seed, "evaluation", name, "order")
        fit(network, scans[train], truth[train], settings, seed, on_epoch)
        scores = predict(network, scans[held_out])
        if not np.isfinite(scores).all():
            raise ArithmeticError(f"{name} diverged; set a lower evaluation.{target}.learning_rate in the profile")
        save_weights(path, network.state_dict(), {"made_of": made_of, "held_out": scores.tolist()})
    else:
        for _ in range(settings.epochs):
            on_epoch()
    finish = regressor if target == "age" else classifier
    return finish(partial(predict, network), len(train), people[held_out], targets[held_out], scores)


def _fresh(config: Config, target: str, seed: int, targets: np.ndarray) -> Network:
    """An untrained network on the device that trains; its weights follow from ``seed``."""
    settings, shape = getattr(config.evaluation, target), config.preprocess.grid.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if target == "age":
            mean, std = float(targets.mean()), float(targets.std()) or 1.0
            network = BrainAge(shape, settings.width, settings.pool, mean, std)
        else:
            network = DSNet(shape, settings.width, settings.pool)
    return network.to("cuda" if torch.cuda.is_available() and config.training.accelerator != "cpu" else "cpu")


def _data(config: Config) -> dict[str, str]:
    """Digests that change with people, labels or volumes."""
    files = (config.volumes / name for name in ("index.csv", "cohort.json"))
    return {path.name: sha256(path) for path in files if path.is_file()}


def _stored(path: Path, made_of: dict[str, Any], network: Network) -> np.ndarray | None:
    """Load stored weights of the same inputs into the network; their held-out scores, or ``None``."""
    if not path.is_file():
        return None
    card, values = read_weights(path, "an evaluator", "run `resdm evaluators` again")
    if card.get("made_of") != made_of:
        return None
    network.load_state_dict(values)
    network.eval()
    return np.array(card["held_out"])
