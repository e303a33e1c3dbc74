"""One training loop for every method: exact resume, EMA, mixed precision, several devices.

Everything random is a function of the seed and of the position in training, or its state is stored. So a resumed
training ends in the same bytes as an uninterrupted one.

The best weights are chosen by the validation criterion: the mean score over validation people per tracer, summed over
tracers, of complete syntheses with the averaged weights. Test people are never used here.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from resdm.batch import TRACERS, Batch
from resdm.checkpoint import (
    CheckpointError,
    describe,
    differences,
    load_state,
    read_metadata,
    save_model,
    save_state,
    tensors,
)
from resdm.cpu_runtime import computes_bf16, on_this_machine, peak_memory, set_up
from resdm.io import write_json, write_rows
from resdm.loop import Loop, gather
from resdm.method import Method, Sessions
from resdm.settings import MethodConfig, TrainingConfig, derive_seed, to_dict
from resdm.timing import forecaster

Score = Callable[[np.ndarray, np.ndarray], float]
"""Score of one volume, ``score(real, synthetic)``, each (X, Y, Z) in [0, 1]; higher is better."""

RESULT_SETTINGS = ("budget", "epochs", "seconds", "shift_voxels", "flip", "validate_every", "clip_norm")
"""Fields of `TrainingConfig` that change the result, in addition to batch size and precision.

A state with other values is refused. The other fields (accelerator, devices, threads, workers, …) may change between a
run and its resumption; then the last bits differ, and on other devices the random draws too.
"""

_WARMUP_STEPS, _TIMED_STEPS = 2, 6  # of the measurement for equal_time


class TrainingDiverged(ArithmeticError):
    """A loss, a weight or a validation score is not finite: names the method, the step and the remedy."""


def psnr(real: np.ndarray, synthetic: np.ndarray) -> float:
    """PSNR in dB of a whole volume (X, Y, Z), data range 1: the default criterion; infinite for equal volumes."""
    mse = float(np.mean((synthetic.astype(np.float64) - real.astype(np.float64)) ** 2))
    return -10 * math.log10(mse) if mse else math.inf


def epoch_batches(n: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each batch of an epoch, a function of seed and epoch only.

    Every batch has ``size`` sessions (all, if there are fewer). The remainder is left out of this epoch.
    """
    order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(n).tolist()
    return [order[i * size : (i + 1) * size] for i in range(max(1, n // size))]


def fingerprint(
    settings: MethodConfig,
    run: TrainingConfig,
    seed: int,
    sessions: tuple[int, int],
    *,
    name: str = "model",
    source: Mapping[str, Any] | None = None,
    data_digest: str | None = None,
) -> dict[str, Any]:
    """All settings that the result of a training depends on, as plain values; ``sessions``: to train, to validate."""
    values = to_dict(settings)
    resolved = {"batch_size": settings.batch_size or run.batch_size, "precision": settings.precision or run.precision}
    return {
        "seed": seed,
        f"methods.{name}": {key: value for key, value in values.items() if key not in (*resolved, "seed")},
        **(source or {}),
        "training": {key: getattr(run, key) for key in RESULT_SETTINGS} | resolved,
        "data": {"digest": data_digest, "train": sessions[0], "validation": sessions[1]},
    }


@dataclass
class _Job:
    """The arguments of `train`, resolved."""

    method: Method
    run: TrainingConfig
    train_set: Dataset
    validation_set: Dataset | None
    collate: Callable[[list[Any]], Batch]
    folder: Path
    name: str
    seed: int
    score: Score
    cache: Path | None
    progress: bool
    stored: dict[str, Any]  # name, source and fingerprint, as save_model takes them

    def __post_init__(self) -> None:
        self.batch_size = self.method.config.batch_size or self.run.batch_size
        self.precision = self.method.config.precision or self.run.precision
        self.steps_per_epoch = max(1, len(self.train_set) // self.batch_size)
        self.state_file = self.folder / "state.pt"


def train(
    method: Method,
    run: TrainingConfig,
    train_set: Dataset,
    validation_set: Dataset | None = None,
    *,
    collate: Callable[[list[Any]], Batch],
    folder: str | Path,
    name: str = "model",
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    data_digest: str | None = None,
    cache: Path | None = None,
    score: Score = psnr,
    progress: bool = True,
) -> Path:
    """Train a method, or continue a stopped training; return at once if its model is finished.

    Parameters
    ----------
    method : Method
        With fresh weights.
    run : TrainingConfig
        Budget, batch, precision and device.
    train_set, validation_set : Dataset
        Index → one session, augmented for training. ``set_epoch(epoch)``, if defined, is called before each epoch;
        augmentation must be a function of seed, epoch and index. Without validation the last weights are kept.
    collate : callable
        List of sessions → `Batch`.
    folder : path
        The model folder: gets ``model.safetensors`` (the best averaged weights), ``history.csv`` (one row per epoch, or
        per candidate of a closed form; no clock times), ``timing.json`` and, until the next call, ``state.pt``.
    name : str
        The method's name in messages and in the stored metadata.
    source : mapping, optional
        Further settings that the data depend on, as plain values; stored with the weights.
    data_digest : str, optional
        Digest of the volumes.
    cache : path, optional
        Folder of pretrained text towers, which methods with the same tower share.
    score : callable
        Validation criterion, see ``Score``.

    Raises
    ------
    CheckpointError
        The folder holds a model or a state of another configuration or other data; the message lists them.
    TrainingDiverged
        A loss, weight or score is not finite. The last good state is kept.

    Notes
    -----
    Under ``equal_time`` the first steps are timed and undone. The number of steps that fit into ``run.seconds`` is then
    fixed and stored. Validation and saving do not count. On several devices each batch is divided among the processes.
    """
    if len(train_set) == 0:
        raise ValueError(f"{name}: nobody to train on; the split 'train' is empty")
    counts = len(train_set), 0 if validation_set is None else len(validation_set)
    known = fingerprint(method.config, run, seed, counts, name=name, source=source, data_digest=data_digest)
    job = _Job(
        method, run, train_set, validation_set, collate, Path(folder), name, seed, score, cache, progress,
        stored={"name": name, "source": source, "fingerprint": known},
    )  # fmt: skip
    if run.devices > 1 and (job.batch_size % run.devices or len(train_set) < job.batch_size):
        raise ValueError(
            f"{name}: a batch of {job.batch_size} of {len(train_set)} sessions cannot be divided among {run.devices} "
            "devices; make training.batch_size a multiple of training.devices"
        )
    if _is_finished(job):
        job.state_file.unlink(missing_ok=True)
    elif method.closed_form:
        _fit(job)
    else:
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        automatic = "cuda" if CUDAAccelerator.is_available() else "cpu"  # not MPS, which has no float64
        accelerator = automatic if run.accelerator == "auto" else run.accelerator
        Fabric(accelerator=accelerator, devices=run.devices, precision=job.precision).launch(_train, job)
    return job.folder


def _is_finished(job: _Job) -> bool:
    """Whether the folder holds the finished model of exactly this training."""
    model = job.folder / "model.safetensors"
    if not model.is_file():
        return False
    different = differences(read_metadata(job.folder)["fingerprint"] or {}, job.stored["fingerprint"])
    if different:
        raise CheckpointError(
            f"{model}: a finished model of another configuration:\n{describe(different, 'in the model', 'now')}\n"
            f"train under another profile name or root (another work folder), or delete {model.name} to train again"
        )
    return all((job.folder / file).is_file() for file in ("history.csv", "timing.json"))


def _fit(job: _Job) -> None:
    """Fit a `Method.closed_form` method on the CPU; the model folder has the same files as after `_train`."""
    set_up(job.run)
    start = time.perf_counter()
    job.method.prepare(job.seed, job.cache, Sessions(job.train_set, job.collate))
    history = job.method.fit(job.train_set, job.validation_set, job.collate)
    seconds, weights = time.perf_counter() - start, list(tensors(job.method).values())
    write_rows(job.folder / "history.csv", history)
    device = torch.device("cpu")
    _write_timing(job, device, seconds, 0, peak_memory(device), 1, (weights, weights))
    best: dict[str, float] = {}
    for row in history:
        best[row["tracer"]] = np.fmax(best.get(row["tracer"], math.nan), row["validation"])
    total = sum(best.values())
    save_model(job.folder, job.method, score=None if np.isnan(total) else float(total), **job.stored)


def _write_timing(
    job: _Job, device: torch.device, seconds: float, steps: int, memory: int, devices: int, weights: tuple[list, list]
) -> None:
    """``timing.json``; ``weights`` are all and the trained ones."""
    cuda = device.type == "cuda"
    write_json(
        job.folder / "timing.json",
        {
            "seconds": round(seconds, 3),
            "steps": steps,
            "epochs": steps / job.steps_per_epoch if steps else 0,
            "seconds_per_step": seconds / steps if steps else 0.0,
            "peak_memory_bytes": memory,
            "peak_memory_of": "device" if cuda else "process",
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
            "devices": devices,
            "threads": torch.get_num_threads(),
            "precision": job.precision,
            "parameters": sum(weight.numel() for weight in weights[0]),
            "trainable_parameters": sum(weight.numel() for weight in weights[1]),
        },
    )


def _train(fabric: Fabric, job: _Job) -> None:
    """The training of one process."""
    _set_up_device(fabric, job)
    stored = load_state(job.state_file, job.stored["fingerprint"]) if job.state_file.is_file() else None
    loop = Loop(fabric, job.method, job.run, job.seed, job.cache, Sessions(job.train_set, job.collate))
    if stored is not None:
        try:
            loop.restore(stored)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{job.state_file}: the state of another version of {job.name!r} ({error}); delete it to start again"
            ) from error
    if job.run.budget == "equal_epochs":
        loop.total = job.run.epochs * job.steps_per_epoch
    elif loop.total is None:
        loop.total = _steps_within(job.run.seconds, loop, job)
    _run_steps(fabric, job, loop)
    if fabric.is_global_zero:
        weights = list(job.method.parameters()), list(loop.trained.values())
        _write_timing(job, fabric.device, loop.seconds, loop.step, loop.memory(), fabric.world_size, weights)
        last = {"weights": loop.averaged(), "step": loop.step, "epoch": len(loop.log.rows), "score": None}
        write_rows(job.folder / "history.csv", loop.log.rows)  # again: the run may have begun at the last step
        save_model(job.folder, job.method, **(loop.best or last), **job.stored)  # last: it marks the end
    fabric.barrier()


def _run_steps(fabric: Fabric, job: _Job, loop: Loop) -> None:
    """All remaining steps, with validation, history and stored states in between."""
    shown = clock = time.perf_counter()
    silent = not (job.progress and fabric.is_global_zero)
    what = f"training {job.name} {on_this_machine(fabric.device.type)}"
    forecast = forecaster(what, loop.total, "steps", loop.step)
    with tqdm(total=loop.total, initial=loop.step, desc=job.name, unit="step", disable=silent) as bar:
        while loop.step < loop.total:
            for batch in _batches(loop, job):
                loop.advance(batch.to(fabric.device))
                bar.update()
                if not silent:
                    forecast(loop.step)
                if not silent and time.perf_counter() - shown > 1:  # reading the loss waits for the device
                    bar.set_postfix_str(f"loss {loop.log.last_loss():.4g}", refresh=False)
                    shown = time.perf_counter()
                done = loop.step == loop.total
                epoch_ends = loop.step % job.steps_per_epoch == 0 or done
                save = loop.step % job.run.checkpoint_every == 0
                if not (epoch_ends or save):
                    continue
                if (fault := loop.fault()) is not None:
                    raise _diverged(job, fault)
                loop.seconds += time.perf_counter() - clock
                if epoch_ends:
                    _close_epoch(loop, job)
                if save or done:  # the last one, too: a workflow removes the results of a job that fails later
                    state = loop.state() | {"fingerprint": job.stored["fingerprint"]}
                    if fabric.is_global_zero:
                        save_state(job.state_file, state)
                clock = time.perf_counter()
                if done:
                    break


def _batches(loop: Loop, job: _Job) -> Iterator[Batch]:
    """The part of this process in each batch, from the current step to the end of its epoch."""
    fabric = loop.fabric
    epoch, position = divmod(loop.step, job.steps_per_epoch)
    if hasattr(job.train_set, "set_epoch"):
        job.train_set.set_epoch(epoch)
    order = epoch_batches(len(job.train_set), job.batch_size, job.seed, epoch)[position:]
    loader = DataLoader(
        job.train_set,
        batch_sampler=[batch[fabric.global_rank :: fabric.world_size] for batch in order],
        collate_fn=job.collate,
        num_workers=job.run.workers,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # else a loader draws from the global stream whenever it starts
    )
    return iter(loader)


def _steps_within(seconds: float, loop: Loop, job: _Job) -> int:
    """How many steps fit into a budget: time a few steps, then undo them."""
    before, device = deepcopy(loop.state()), loop.fabric.device
    times, stream = [], iter(())
    for _ in range(_WARMUP_STEPS + _TIMED_STEPS):
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            stream = _batches(loop, job)
            batch = next(stream)
        loop.advance(batch.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    loop.restore(before)
    return loop.fabric.broadcast(max(1, round(seconds / float(np.median(times[_WARMUP_STEPS:])))))


def _close_epoch(loop: Loop, job: _Job) -> None:
    """Validate if due, and write the epoch's row of ``history.csv``."""
    epoch = (loop.step - 1) // job.steps_per_epoch + 1
    due = job.validation_set and (epoch % job.run.validate_every == 0 or loop.step == loop.total)
    validation = _validate(loop, job, epoch) if due else {}
    loop.log.close(loop.fabric, {"epoch": epoch, "step": loop.step}, validation)
    if loop.fabric.is_global_zero:
        write_rows(job.folder / "history.csv", loop.log.rows)


@torch.no_grad()
def _validate(loop: Loop, job: _Job, epoch: int) -> dict[str, float]:
    """``validation_<tracer>``, the mean score over people with that PET, and their sum; keeps the best weights."""
    fabric, method, people = loop.fabric, job.method, job.validation_set
    sums = np.zeros((2, len(TRACERS)))  # of scores, of people
    method.eval()
    with loop.averaged_weights():
        for i, start in enumerate(range(0, len(people), job.batch_size)):
            if i % fabric.world_size != fabric.global_rank:
                continue
            batch = job.collate([people[j] for j in range(start, min(start + job.batch_size, len(people)))])
            generator = torch.Generator(fabric.device)  # the same noise at every validation
            generator.manual_seed(derive_seed(job.seed, "validation", i))
            with fabric.autocast():
                synthetic = method.synthesise(batch.mri.to(fabric.device), batch.prior, generator)
            synthetic = synthetic.float().cpu().numpy()
            for person, tracer in batch.present.nonzero().tolist():
                sums[0, tracer] += job.score(batch.pet[person, tracer].float().numpy(), synthetic[person, tracer])
                sums[1, tracer] += 1
        sums = sum(gather(fabric, sums))
        scores = {f"validation_{t}": float(s / n) for t, s, n in zip(TRACERS, *sums, strict=True) if n}
        total = sum(scores.values())
        if math.isnan(total):
            raise _diverged(job, f"the validation score is not a number after step {loop.step}")
        if scores and (loop.best is None or total > loop.best["score"]):
            weights = {key: value.detach().to("cpu", copy=True) for key, value in loop.changing().items()}
            loop.best = {"score": total, "step": loop.step, "epoch": epoch, "weights": weights}
    method.train()
    return scores | {"validation": total} if scores else {}  # of people without a PET the last weights are kept


def _diverged(job: _Job, fault: str) -> TrainingDiverged:
    file, rate = job.state_file, job.method.config.learning_rate
    kept = f"the last good state is kept in {file}" if file.is_file() else "no state was stored yet"
    return TrainingDiverged(
        f"{job.name}: training diverged: {fault}; {kept}. Lower methods.{job.name}.learning_rate (now {rate:g}) or set "
        f"training.clip_norm, delete {file.name} and start again. After a fault of the machine, run again: training "
        "continues from that state"
    )


def _set_up_device(fabric: Fabric, job: _Job) -> None:
    set_up(job.run)
    if fabric.device.type == "cpu" and job.precision != "32-true" and not computes_bf16():
        warnings.warn(
            f"{job.name}: this CPU emulates bfloat16, about a hundred times slower; stop the training and set "
            "training.precision: 32-true",
            stacklevel=3,
        )
    if fabric.device.type == "cuda" and job.run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and no result depends on it
        torch.backends.cudnn.benchmark = False
