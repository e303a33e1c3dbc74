"""One training loop for every method: exact resume, EMA, mixed precision, several devices.

The loop knows a `Method` and a data set, never a name. Everything random is a function of the seed and of the place in
training, or its state is stored, so that a run that was killed and goes on ends in the same bytes as one that was not.

Best weights are chosen by the validation criterion: per tracer the mean score over validation people, summed over
tracers, of images synthesised in full with the averaged weights. The test people are never seen here.
"""

from __future__ import annotations

import math
import os
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from resdm.batch import TRACERS, Batch
from resdm.checkpoint import (
    CheckpointError,
    describe,
    differences,
    load_state,
    load_tensors,
    read_metadata,
    save_model,
    save_state,
    tensors,
)
from resdm.cpu_runtime import computes_bf16, on_this_machine, set_up
from resdm.io import write_csv, write_json
from resdm.method import Method
from resdm.settings import derive_seed, to_dict
from resdm.timing import forecaster
from resdm_suite.profiles import Config

Score = Callable[[np.ndarray, np.ndarray], float]
"""A volume's score from the real and the synthetic one, (X, Y, Z) each, in [0, 1]; higher is better."""

RESULT_SETTINGS = ("budget", "epochs", "seconds", "shift_voxels", "flip", "validate_every", "clip_norm")
"""Settings of ``training`` that change the result, beside batch size and precision: a state of other values is refused.

The rest (accelerator, devices, threads, keep_memory, workers, checkpoint_every, channels_last, compile, deterministic)
may change between a run and its resumption; then the last bits, and on another kind or number of devices the random
draws, are no longer those of a single run.
"""

_MEASURED_STEPS = (2, 6)  # equal_time: steps to warm up, steps to time


class TrainingDiverged(ArithmeticError):
    """A loss, a weight or a validation score that is no number: names the method, the step and the remedy."""


def psnr(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the whole volume in dB, data range 1: the default criterion."""
    mse = float(np.mean((synthetic.astype(np.float64) - real.astype(np.float64)) ** 2))
    return -10 * math.log10(mse) if mse else math.inf


# ── closed forms ──────────────────────────────────────────────────────────────────────────────────


def decay_factor(decay: str, step: int, total: int) -> float:
    """What the learning rate of step 0 … total − 1 is multiplied with.

    ``cosine``: ½ (1 + cos(π step / total)). ``linear_half``: 1 over the first half, then linearly towards 0, as
    pix2pix does by epochs.
    """
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    return min(1.0, 2 * (1 - step / total)) if decay == "linear_half" else 1.0


@torch.no_grad()
def update_average(average: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """EMA in place: average ← decay · average + (1 − decay) · weights; a decay of 0 copies."""
    if decay:
        torch._foreach_lerp_(average, weights, 1 - decay)
    else:
        torch._foreach_copy_(average, weights)


def epoch_batches(n: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Who is in which batch: a function of seed and epoch, so the position in an epoch is all a resume needs.

    Every batch has ``size`` people (all, where there are fewer): who is left over comes in other epochs.
    """
    order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(n).tolist()
    return [order[i * size : (i + 1) * size] for i in range(max(1, n // size))]


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────


def fingerprint(
    config: Config, name: str, train_set: Dataset, validation_set: Dataset | None, data_digest: str | None = None
) -> dict[str, Any]:
    """All that a training's result depends on, as plain values."""
    settings = config.method(name)
    found = {
        "seed": config.seeded(name).seed,
        f"methods.{name}": to_dict(settings),
        "preprocess": to_dict(config.preprocess),
        "training": {key: getattr(config.training, key) for key in RESULT_SETTINGS}
        | {
            "batch_size": settings.batch_size or config.training.batch_size,
            "precision": config.precision(name),
        },
        "data": {
            "digest": data_digest,
            "train": len(train_set),
            "validation": 0 if validation_set is None else len(validation_set),
        },
    }
    for resolved in ("batch_size", "precision", "seed"):  # said above, as they hold
        del found[f"methods.{name}"][resolved]
    return found


def train(
    method: Method,
    config: Config,
    name: str,
    train_set: Dataset,
    validation_set: Dataset | None = None,
    *,
    collate: Callable[[list[Any]], Batch],
    data_digest: str | None = None,
    folder: str | Path | None = None,
    score: Score = psnr,
    progress: bool = True,
) -> Path:
    """Train a method, or go on where a killed training stopped; where its model is there, return at once.

    Parameters
    ----------
    method : Method
        With fresh weights, made under the seed of `Config.seeded`.
    config : Config
    name : str
        The method's name in the profile.
    train_set, validation_set : Dataset
        Maps an index to one session, augmented for training. ``set_epoch(epoch)``, where there is one, is called
        before each epoch; augmentation must be a function of seed, epoch and index. Without validation people the
        last weights are kept.
    collate : callable
        List of sessions → `Batch`.
    data_digest : str, optional
        Of the volumes behind the data sets: a training does not go on with others.
    folder : path, optional
        The model folder; by default the profile's.
    score : callable
        Validation criterion of one volume, ``score(real, synthetic)``; PSNR by default.
    progress : bool
        A bar over optimiser steps, with the loss.

    Returns
    -------
    Path
        The folder, with ``config.yaml``, ``model.safetensors`` (averaged weights, the best by validation),
        ``history.csv`` (a row an epoch, no clock times: the same run gives the same bytes) and ``timing.json``. Until
        the model is written, ``state.pt`` holds what a resume needs.

    Raises
    ------
    CheckpointError
        The folder holds the model or the state of another configuration: says what differs, and leaves it alone.
    TrainingDiverged
        Something is no number any more; the last good state is kept.

    Notes
    -----
    Under ``equal_time`` the first few steps are timed once, undone, and the number of steps that fit into
    ``training.seconds`` is fixed and stored: a resume keeps it. Validation and saving do not count.

    On several devices, people of a batch are dealt out to the processes and gradients averaged over them.
    """
    config = config.seeded(name)
    settings, run = config.method(name), config.training
    size = settings.batch_size or run.batch_size
    folder = config.model(name) if folder is None else Path(folder)
    if len(train_set) == 0:
        raise ValueError(f"{name}: nobody to train on; the split 'train' is empty")
    if run.devices > 1 and (size % run.devices or len(train_set) < size):
        raise ValueError(
            f"{name}: a batch of {size} of {len(train_set)} sessions cannot be dealt out to {run.devices} devices; "
            "make training.batch_size a multiple of training.devices"
        )
    known = fingerprint(config, name, train_set, validation_set, data_digest)
    if _is_finished(folder, known):
        (folder / "state.pt").unlink(missing_ok=True)  # a kill came between the model and this
        return folder
    if method.closed_form:
        return _fit(method, config, name, train_set, validation_set, collate, folder, known)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    fabric = Fabric(accelerator=run.accelerator, devices=run.devices, precision=config.precision(name))
    fabric.launch(_train, method, config, name, train_set, validation_set, collate, folder, score, known, progress)
    return folder


def _is_finished(folder: Path, known: dict[str, Any]) -> bool:
    """Whether the model of exactly this training is there, with all that belongs to it."""
    model = folder / "model.safetensors"
    if not model.is_file():
        return False
    different = differences(read_metadata(folder)["fingerprint"] or {}, known)
    if different:
        raise CheckpointError(
            f"{model}: a finished model of another configuration:\n{describe(different, 'in the model', 'now')}\n"
            f"train under another profile name or root (another work folder), or delete {model.name} to train anew"
        )
    return all((folder / file).is_file() for file in ("config.yaml", "history.csv", "timing.json"))


def _fit(
    method: Method,
    config: Config,
    name: str,
    train_set: Dataset,
    validation_set: Dataset | None,
    collate: Callable[[list[Any]], Batch],
    folder: Path,
    known: dict[str, Any],
) -> Path:
    """Fit a method that is `Method.closed_form`, on the CPU; the model folder is as after steps."""
    set_up(config.training)
    start = time.perf_counter()
    history = pd.DataFrame(method.fit(train_set, validation_set, collate))
    seconds, values = time.perf_counter() - start, sum(value.numel() for value in tensors(method).values())
    write_csv(folder / "history.csv", history, "%.9g")
    cost = {"seconds": round(seconds, 3), "steps": 0, "epochs": 0, "seconds_per_step": 0.0}
    cost |= {"peak_memory_bytes": _process_memory(), "peak_memory_of": "process", "device": "cpu", "devices": 1}
    cost |= {"threads": torch.get_num_threads(), "precision": config.precision(name)}
    write_json(folder / "timing.json", cost | {"parameters": values, "trainable_parameters": values})
    best = history.groupby("tracer")["validation"].max().sum(skipna=False)
    return save_model(folder, method, config, name, score=None if np.isnan(best) else float(best), fingerprint=known)


def _process_memory() -> int:
    """Peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _train(
    fabric: Fabric,
    method: Method,
    config: Config,
    name: str,
    train_set: Dataset,
    validation_set: Dataset | None,
    collate: Callable[[list[Any]], Batch],
    folder: Path,
    score: Score,
    known: dict[str, Any],
    progress: bool,
) -> None:
    """What each process does."""
    run = config.training
    size = config.method(name).batch_size or run.batch_size
    set_up(run)
    if fabric.device.type == "cpu" and config.precision(name) == "bf16-mixed" and not computes_bf16():
        warnings.warn(
            f"{name}: this CPU emulates bfloat16, a hundred times slower; stop, and set training.precision: 32-true",
            stacklevel=2,
        )
    if fabric.device.type == "cuda" and run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and no result depends on it
        torch.backends.cudnn.benchmark = False
    state_file = folder / "state.pt"
    stored = load_state(state_file, known) if state_file.is_file() else None

    loop = _Loop(fabric, method, config, name, state_file, (collate([train_set[i]]) for i in range(len(train_set))))
    if stored is not None:
        try:
            loop.restore(stored)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{state_file}: the state of another version of {name!r} ({error}); delete it to start anew"
            ) from error

    steps_an_epoch = max(1, len(train_set) // size)
    people = 0 if validation_set is None else len(validation_set)

    def batches(first_step: int) -> Iterator[Batch]:
        """The share of this process in each batch, from a step to the end of its epoch."""
        epoch, position = divmod(first_step, steps_an_epoch)
        if hasattr(train_set, "set_epoch"):
            train_set.set_epoch(epoch)
        order = epoch_batches(len(train_set), size, config.seed, epoch)[position:]
        loader = DataLoader(
            train_set,
            batch_sampler=[batch[fabric.global_rank :: fabric.world_size] for batch in order],
            collate_fn=collate,
            num_workers=run.workers,
            pin_memory=fabric.device.type == "cuda",
            generator=torch.Generator(),  # its own: else a loader draws from the global stream whenever it starts
        )
        return iter(loader)

    if run.budget == "equal_epochs":
        loop.total = run.epochs * steps_an_epoch
    elif loop.total is None:
        loop.total = loop.steps_within(run.seconds, batches)
    total = loop.total

    shown = clock = time.perf_counter()
    silent = not (progress and fabric.is_global_zero)
    forecast = forecaster(f"training {name} {on_this_machine(fabric.device.type)}", total, "steps", loop.step)
    with tqdm(total=total, initial=loop.step, desc=name, unit="step", disable=silent, dynamic_ncols=True) as bar:
        while loop.step < total:
            for batch in batches(loop.step):
                loop.advance(batch.to(fabric.device))
                bar.update()
                if not silent:
                    forecast(loop.step)
                if not silent and time.perf_counter() - shown > 1:
                    # Reading the loss waits for the device, so once a second at most.
                    bar.set_postfix_str(f"loss {loop.last_loss():.4g}", refresh=False)
                    shown = time.perf_counter()
                done = loop.step == total
                epoch_ends = loop.step % steps_an_epoch == 0 or done
                save = loop.step % run.checkpoint_every == 0
                if not (epoch_ends or save):
                    continue
                loop.check()
                loop.seconds += time.perf_counter() - clock
                if epoch_ends:
                    epoch = (loop.step - 1) // steps_an_epoch + 1
                    due = people and (epoch % run.validate_every == 0 or done)
                    loop.close_epoch(epoch, loop.validate(validation_set, collate, size, score, epoch) if due else {})
                    if fabric.is_global_zero:
                        write_csv(folder / "history.csv", pd.DataFrame(loop.history), "%.9g")
                if save and not done:  # of a finished training the model is kept, not the state
                    state = loop.state() | {"fingerprint": known}
                    if fabric.is_global_zero:
                        save_state(state_file, state)
                clock = time.perf_counter()
                if done:
                    break
    if fabric.is_global_zero:
        write_json(folder / "timing.json", loop.timing(steps_an_epoch))
        best = loop.best or {"weights": loop.averaged(), "step": total, "epoch": len(loop.history), "score": None}
        save_model(  # last: its presence says that the training is finished
            folder, method, config, name, weights=best["weights"], step=best["step"], epoch=best["epoch"],
            score=best["score"], fingerprint=known,
        )  # fmt: skip
        state_file.unlink(missing_ok=True)
    fabric.barrier()


class _Loop:
    """What changes from step to step, and how: all of it goes into `state` and comes back by `restore`."""

    def __init__(
        self, fabric: Fabric, method: Method, config: Config, name: str, state_file: Path, sessions: Iterable[Batch]
    ) -> None:
        self.fabric, self.method, self.config, self.name, self.state_file = fabric, method, config, name, state_file
        self.settings = config.method(name)
        method.to(fabric.device).train()
        self._seed(config.seed)
        method.prepare(config.seed, config.work / "lessons", sessions)
        method.adapt(config.training, fabric.device)
        optimisers = method.optimisers()
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                group["initial_lr"] = group["lr"]
        self.optimisers = {key: fabric.setup_optimizers(optimiser) for key, optimiser in optimisers.items()}
        trained = {id(weight) for o in optimisers.values() for group in o.param_groups for weight in group["params"]}
        self.trained = {key: weight for key, weight in method.named_parameters() if id(weight) in trained}
        if fabric.world_size > 1:
            for value in tensors(method).values():
                torch.distributed.broadcast(value.data, 0)
        self.followed = {key: weight for key, weight in self.trained.items() if method.averages(key)}  # by the EMA
        self.average = [weight.detach().clone() for weight in self.followed.values()] if self.settings.ema else None
        self.step = 0
        self.total: int | None = None
        self.sums: dict[str, Tensor] = {}  # since the epoch began, on the device
        self.counts: dict[str, int] = {}
        self.first_bad: dict[str, Tensor] = {}  # optimiser → step of its first loss that is no number
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.peak_memory = 0

    def _seed(self, *parts: Any) -> None:
        """Every source of randomness of this process; rank 0 of a plain start has the seed itself."""
        rank = self.fabric.global_rank
        seed = parts[0] if len(parts) == 1 and rank == 0 else derive_seed(*parts, "rank", rank)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from it)
        torch.manual_seed(seed)  # CUDA's as well
        if self.method.shared_draws and rank:  # the stream of rank 0, of which each process takes its people's part
            seed = parts[0] if len(parts) == 1 else derive_seed(*parts, "rank", 0)
        self.generator = torch.Generator(self.fabric.device).manual_seed(derive_seed(seed, "losses"))

    # ── a step ────────────────────────────────────────────────────────────────────────────────────

    def advance(self, batch: Batch) -> None:
        """One batch: every loss that the method yields, its optimiser stepped before the next is asked for."""
        batch = replace(batch, prior=replace(batch.prior, share=(self.fabric.global_rank, self.fabric.world_size)))
        factor = decay_factor(self.settings.decay, self.step, self.total) if self.total else 1.0
        losses = iter(self.method.losses(batch, self.generator))
        mine, loss = self._next(losses)
        while (key := self._turn(mine)) is not None:
            optimiser = self.optimisers[key]
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimiser.zero_grad()
            if key == mine:
                self.fabric.backward(loss)
            self._share_gradients(optimiser, key == mine)
            if self.config.training.clip_norm is not None:
                self.fabric.clip_gradients(
                    self.method, optimiser, max_norm=self.config.training.clip_norm, error_if_nonfinite=False
                )
            optimiser.step()
            if key == mine:
                self._note(key, loss.detach())
                mine, loss = self._next(losses)
        for key, value in self.method.scalars.items():
            self._add(key, value)
        if self.average is not None:
            plain = self.step < getattr(self.settings, "ema_warmup", 0)
            update_average(self.average, list(self.followed.values()), 0.0 if plain else self.settings.ema)
        self.step += 1

    def _next(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str | None, Tensor | None]:
        with self.fabric.autocast():
            return next(losses, (None, None))

    def _turn(self, mine: str | None) -> str | None:
        """Whose optimiser is next: the first, in their order, that a process has a loss for.

        A process whose people lack a tracer may have none for its model.
        """
        waiting = {key for key in self._gather(mine) if key is not None}
        return next((key for key in self.optimisers if key in waiting), None)

    def _share_gradients(self, optimiser: torch.optim.Optimizer, mine: bool) -> None:
        """Mean over the processes with a loss. No wrapper does it: losses come from a generator, not a forward pass."""
        if self.fabric.world_size == 1:
            return
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        sizes = [weight.numel() for weight in weights]
        flat = torch.cat([*(weight.grad.flatten() for weight in weights), weights[0].new_full((1,), float(mine))])
        *grads, count = self.fabric.all_reduce(flat, reduce_op="sum").split([*sizes, 1])
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad.copy_((grad / count).view_as(weight))

    def _note(self, key: str, loss: Tensor) -> None:
        """Keep a loss, and the step of the first that is no number, on the device: asking now would stop the host."""
        self._add(f"loss_{key}", loss)
        bad = torch.where(loss.isfinite(), math.inf, self.step + 1.0)
        self.first_bad[key] = torch.minimum(self.first_bad.get(key, bad), bad)

    def _add(self, key: str, value: Tensor) -> None:
        self.sums[key] = self.sums.get(key, 0) + value.float()
        self.counts[key] = self.counts.get(key, 0) + 1

    def _gather(self, value: Any) -> list[Any]:
        """A plain value of every process."""
        if self.fabric.world_size == 1:
            return [value]
        everyone = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(everyone, value)
        return everyone

    def last_loss(self) -> float:
        """Mean loss of the epoch so far, summed over optimisers."""
        return sum(float(v) / self.counts[key] for key, v in self.sums.items() if key.startswith("loss_"))

    def steps_within(self, seconds: float, batches: Callable[[int], Iterator[Batch]]) -> int:
        """How many steps fit into a budget: times a few, then undoes them."""
        before, warm = deepcopy(self.state()), _MEASURED_STEPS[0]
        times, stream = [], iter(())
        for _ in range(sum(_MEASURED_STEPS)):
            start = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                stream = batches(self.step)
                batch = next(stream)
            self.advance(batch.to(self.fabric.device))
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize(self.fabric.device)
            times.append(time.perf_counter() - start)
        self.restore(before)
        return self.fabric.broadcast(max(1, round(seconds / float(np.median(times[warm:])))))

    # ── guards, validation, history ───────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise `TrainingDiverged` where a loss since the epoch began, or a weight now, is no number."""
        own = min(((float(step), key) for key, step in self.first_bad.items()), default=(math.inf, ""))
        step, key = min(self._gather(own))
        if math.isfinite(step):
            raise self._diverged(f"the loss of optimiser {key!r} is not finite at step {step:.0f}")
        norms = torch.stack(torch._foreach_norm([weight.detach() for weight in self.trained.values()]))
        if not bool(norms.isfinite().all()):
            raise self._diverged(f"a weight is not finite after step {self.step}")

    def _diverged(self, what: str) -> TrainingDiverged:
        state_file = self.state_file
        kept = f"the last good state is kept in {state_file}" if state_file.is_file() else "no state was stored yet"
        return TrainingDiverged(
            f"{self.name}: training diverged: {what}; {kept}. Lower methods.{self.name}.learning_rate (now "
            f"{self.settings.learning_rate:g}) or set training.clip_norm, and start anew, {state_file.name} deleted; "
            "after a fault of the machine, run again: training goes on from that state"
        )

    @torch.no_grad()
    def validate(
        self,
        people: Dataset,
        collate: Callable[[list[Any]], Batch],
        size: int,
        score: Score,
        epoch: int,
    ) -> dict[str, float]:
        """Scores of full syntheses with averaged weights, and the best weights so far.

        Returns
        -------
        dict
            ``validation_<tracer>``, the mean over people who have it, and ``validation``, their sum.
        """
        sums = np.zeros((2, len(TRACERS)))  # of scores, of people
        self.method.eval()
        with self._averaged_weights():
            for i, start in enumerate(range(0, len(people), size)):
                if i % self.fabric.world_size != self.fabric.global_rank:
                    continue
                batch = collate([people[j] for j in range(start, min(start + size, len(people)))])
                generator = torch.Generator(self.fabric.device)  # the same noise at every validation
                generator.manual_seed(derive_seed(self.config.seed, "validation", i))
                with self.fabric.autocast():
                    synthetic = self.method.synthesise(batch.mri.to(self.fabric.device), batch.prior, generator)
                synthetic = synthetic.float().cpu().numpy()
                for person, tracer in batch.present.nonzero().tolist():
                    sums[0, tracer] += score(batch.pet[person, tracer].float().numpy(), synthetic[person, tracer])
                    sums[1, tracer] += 1
            sums = sum(self._gather(sums))
            found = {f"validation_{t}": float(s / n) for t, s, n in zip(TRACERS, *sums, strict=True) if n}
            found["validation"] = sum(found.values())
            if math.isnan(found["validation"]):
                raise self._diverged(f"the validation score is not a number after step {self.step}")
            if self.best is None or found["validation"] > self.best["score"]:
                kept = {key: value.detach().to("cpu", copy=True) for key, value in self._changing().items()}
                self.best = {"score": found["validation"], "step": self.step, "epoch": epoch, "weights": kept}
        self.method.train()
        return found

    def close_epoch(self, epoch: int, validated: Mapping[str, float]) -> None:
        """A row of ``history.csv``: mean losses and scalars of the epoch, and the validation where there was one."""
        everyone = self._gather({key: (float(value), self.counts[key]) for key, value in self.sums.items()})
        totals: dict[str, np.ndarray] = {}
        for own in everyone:
            for key, value in own.items():
                totals[key] = totals.get(key, 0) + np.array(value)
        means = {key: float(value / count) for key, (value, count) in totals.items()}
        self.history.append({"epoch": epoch, "step": self.step} | means | dict(validated))
        self.sums, self.counts, self.first_bad = {}, {}, {}

    def averaged(self) -> dict[str, Tensor]:
        """Averaged weights and current buffers, on the device."""
        average = zip(self.followed, self.average or self.followed.values(), strict=True)
        return self._changing() | dict(average)

    def _changing(self) -> dict[str, Tensor]:
        """Trained weights and persistent buffers: all that differs from how the method was built."""
        parameters = dict(self.method.named_parameters())
        return {k: v for k, v in tensors(self.method).items() if k in self.trained or k not in parameters}

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The method with averaged weights, inside."""
        if self.average is None:
            yield
            return
        weights = list(self.followed.values())
        own = [weight.detach().clone() for weight in weights]
        torch._foreach_copy_(weights, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def timing(self, steps_an_epoch: int) -> dict[str, Any]:
        """What ``timing.json`` holds. Steps repeated after a kill count once."""
        device = self.fabric.device
        return {
            "seconds": round(self.seconds, 3),
            "steps": self.step,
            "epochs": self.step / steps_an_epoch,
            "seconds_per_step": self.seconds / max(1, self.step),
            "peak_memory_bytes": self._memory(),
            "peak_memory_of": "device" if device.type == "cuda" else "process",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "devices": self.fabric.world_size,
            "threads": torch.get_num_threads(),
            "precision": self.config.precision(self.name),
            "parameters": sum(weight.numel() for weight in self.method.parameters()),
            "trainable_parameters": sum(weight.numel() for weight in self.trained.values()),
        }

    def _memory(self) -> int:
        if self.fabric.device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self.fabric.device)
        else:
            now = _process_memory()
        self.peak_memory = max(self.peak_memory, now)
        return self.peak_memory

    # ── state ─────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """All that an exact resume needs: tensors and plain values. Every process must call it."""
        randomness = {
            "device": self.fabric.device.type,
            "losses": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.fabric.device) if self.fabric.device.type == "cuda" else None,
            "numpy": [np.asarray(value).tolist() for value in np.random.get_state()],  # noqa: NPY002
            "python": random.getstate(),
        }
        return {
            "step": self.step,
            "total": self.total,
            "weights": {key: value.detach() for key, value in tensors(self.method).items()},
            "average": self.average,
            "optimisers": {key: optimiser.optimizer.state_dict() for key, optimiser in self.optimisers.items()},
            "scaler": self.fabric.strategy.precision.state_dict(),
            "random": self._gather(randomness),
            "sums": self.sums,
            "counts": self.counts,
            "first_bad": self.first_bad,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "peak_memory": self._memory(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state` was taken."""
        device = self.fabric.device
        load_tensors(self.method, state["weights"])
        if self.average is not None:
            torch._foreach_copy_(self.average, [value.to(device) for value in state["average"]])
        for key, optimiser in self.optimisers.items():
            optimiser.optimizer.load_state_dict(state["optimisers"][key])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for key in ("step", "total", "history", "best", "seconds", "peak_memory"):
            setattr(self, key, state[key])
        self.counts = dict(state["counts"])
        self.sums = {key: value.to(device) for key, value in state["sums"].items()}
        self.first_bad = {key: value.to(device) for key, value in state["first_bad"].items()}
        everyone = state["random"]
        if len(everyone) != self.fabric.world_size or everyone[0]["device"] != device.type:
            warnings.warn(
                f"{self.name}: the state was stored by {len(everyone)} process(es) on {everyone[0]['device']}; this "
                f"run has {self.fabric.world_size} on {device.type}, so it goes on with other random draws",
                stacklevel=2,
            )
            self._seed(self.config.seed, "resumed at", self.step)
            return
        own = everyone[self.fabric.global_rank]
        self.generator.set_state(own["losses"])
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"], device)
        name, keys, *rest = own["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        random.setstate(own["python"])
