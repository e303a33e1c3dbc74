"""Fit an evaluator on real scans, once, and let it judge others.

What is fitted lies below ``work/<profile>/evaluation/models/`` as safetensors, with what it depended on; a run that was
killed goes on with the next evaluator. On a CPU the same seed gives the same bytes.
"""

from __future__ import annotations

import json
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
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from resdm.io import atomic, sha256
from resdm.settings import derive_seed, to_dict
from resdm_suite.evaluation import networks
from resdm_suite.evaluation.agreement import pearson
from resdm_suite.evaluation.networks import BrainAge, DSNet
from resdm_suite.profiles import Config, EvaluatorConfig

Network = DSNet | BrainAge


@dataclass(frozen=True)
class Evaluator:
    """What was fitted on real people, and what real people that it has not seen say of it.

    Parameters
    ----------
    answer : callable
        Inputs of n sessions, volumes (n, 1, X, Y, Z) in [0, 1] for a network → (n,): probability of the positive
        class, or age in years, less the mean error on the held-out sessions.
    n_train, n_held_out : int
        Sessions.
    quality : float
        On the held-out people, whose visits are averaged: AUC of a classifier; Pearson's r of a brain age, NaN where it
        always says the same.
    p : float
        One-sided p of that quality against chance, over people: Mann–Whitney, or of r; 1 where it always says the same.
    offset : float
        Set on the held-out sessions: a classifier's threshold (`youden`), or the mean error of a brain age in years.
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

    Any value between two neighbouring scores does the same on these people; the middle is taken, since the scores
    themselves would put the threshold at the edge of one class. Of equal choices the highest threshold is taken.
    """
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)  # the first threshold is infinite
    index = (true - false)[1:]
    best = 1 + int(np.argmax(index >= index.max() - 1e-9))  # equal but for rounding
    return float(thresholds[best : best + 2].mean())


def shifted(volumes: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    """Each volume (n, 1, X, Y, Z) moved by its own −most … most voxels an axis; what comes in from outside is 0."""
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
    """Train a network in place: AdamW, cosine decay, nobody weighted, the last weights kept.

    Parameters
    ----------
    network : DSNet or BrainAge
        On its device.
    volumes : Tensor (n, 1, X, Y, Z)
        Intensities in [0, 1], on the CPU.
    targets : Tensor (n,)
        0 and 1, or ages in years.
    settings : EvaluatorConfig
    seed : int
        Of order and shifts.
    on_epoch : callable
        Called after each epoch.
    """
    device, rng = next(network.parameters()).device, np.random.default_rng(seed)
    batches = math.ceil(len(volumes) / settings.batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches * settings.epochs)
    network.train()
    for _ in range(settings.epochs):
        for chosen in np.array_split(rng.permutation(len(volumes)), batches):
            batch = shifted(volumes[chosen], settings.shift_voxels, rng)
            loss = network.loss(batch.to(device), targets[chosen].to(device))
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
    """A classifier with the threshold that suits the held-out sessions' ``labels`` and ``scores`` best.

    Visits of one person are not independent: quality and its p are of one mean score a person, or of one for each
    label where that changed between visits.
    """
    means = pd.Series(scores).groupby([people, labels]).mean()
    label, score = means.index.get_level_values(1).to_numpy(), means.to_numpy()
    p = float(mannwhitneyu(score[label == 1], score[label == 0], alternative="greater").pvalue)
    return Evaluator(answer, n_train, len(labels), float(roc_auc_score(label, score)), p, youden(labels, scores))


def regressor(
    answer: Callable[[Any], np.ndarray], n_train: int, people: np.ndarray, ages: np.ndarray, scores: np.ndarray
) -> Evaluator:
    """A brain age without its mean error on the held-out sessions, whose slope is left as it is.

    Quality and its p are of one mean age and one mean score a person.
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
    """A fitted evaluator: the stored one, where it was fitted with these settings on these data, or a new one.

    Parameters
    ----------
    config : Config
    target : {"status", "sex", "age"}
        `DSNet` for the first two, `BrainAge` for the last, by the settings of that name in ``evaluation``.
    name : str
        Of its file, and part of its seed.
    volumes : callable
        Gives the sessions' volumes (n, 1, X, Y, Z); not called where the evaluator is stored.
    people : ndarray (n,)
        Whose session each is.
    targets : ndarray (n,)
        Labels 0 and 1, or ages in years.
    fold : tuple of ndarray
        Rows to train on, rows held out.
    on_epoch : callable
        Called once for each epoch, those of a stored evaluator too.

    Raises
    ------
    ArithmeticError
        It diverged.
    """
    settings, (train, held_out) = getattr(config.evaluation, target), fold
    path = config.evaluation_folder / "models" / f"{name}.safetensors"
    made_of = {"name": name, "settings": to_dict(settings), "seed": config.seed, "data": _data(config)}
    made_of |= {"preprocess": config.digest("preprocess"), "train": train.tolist(), "held_out": held_out.tolist()}
    made_of["code"] = [sha256(module) for module in (__file__, networks.__file__)]  # a stored one is of today's code
    network = _fresh(config, target, derive_seed(config.seed, "evaluation", name), targets[train])
    scores = _stored(path, made_of, network)
    if scores is None:
        scans, wanted = volumes(), torch.tensor(targets, dtype=torch.float32)
        seed = derive_seed(config.seed, "evaluation", name, "order")
        fit(network, scans[train], wanted[train], settings, seed, on_epoch)
        scores = predict(network, scans[held_out])
        if not np.isfinite(scores).all():
            raise ArithmeticError(f"{name} diverged; set a lower evaluation.{target}.learning_rate in the profile")
        card = json.dumps({"made_of": made_of, "held_out": scores.tolist()}, sort_keys=True)
        weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
        with atomic(path) as temporary:
            save_file(weights, temporary, metadata={"resdm": card})  # one key: the order of several is not fixed
    else:
        for _ in range(settings.epochs):
            on_epoch()
    judge = regressor if target == "age" else classifier
    return judge(partial(predict, network), len(train), people[held_out], targets[held_out], scores)


def _fresh(config: Config, target: str, seed: int, targets: np.ndarray) -> Network:
    """An untrained network on the device that trains; its weights are a function of ``seed``."""
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
    """Load the weights that were made of the same, and return their held-out scores; ``None`` where there are none."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["resdm"])
        if card["made_of"] != made_of:
            return None
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (no mapping)
    network.eval()
    return np.array(card["held_out"])
