"""What changes during a training, step by step: weights, optimisers, EMA, random sources and the epoch's means.

All of it goes into `Loop.state` and comes back by `Loop.restore`, so a resumed training ends in the same bytes.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from resdm.batch import Batch
from resdm.checkpoint import load_tensors, tensors
from resdm.cpu_runtime import peak_memory
from resdm.method import Method
from resdm.settings import TrainingConfig, derive_seed


def decay_factor(decay: str, step: int, total: int) -> float:
    """Factor of the learning rate at step 0 … total − 1.

    ``cosine``: ½ (1 + cos(π step / total)). ``linear_half``: 1 over the first half, then linear towards 0 (pix2pix).
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


def gather(fabric: Fabric, value: Any) -> list[Any]:
    """A plain value from every process."""
    if fabric.world_size == 1:
        return [value]
    values = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


class RandomSources:
    """Python's, NumPy's and torch's global streams of this process, and the generator of the losses."""

    def __init__(self, fabric: Fabric, shared_draws: bool, seed: int) -> None:
        self.fabric, self.shared_draws = fabric, shared_draws
        self.seed(seed)

    def seed(self, *parts: Any) -> None:
        """Seed every source; rank 0 of a new training uses the seed itself."""
        rank = self.fabric.global_rank
        seed = parts[0] if len(parts) == 1 and rank == 0 else derive_seed(*parts, "rank", rank)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from it)
        torch.manual_seed(seed)  # CUDA's as well
        if self.shared_draws and rank:  # the stream of rank 0: each process takes its people's part of it
            seed = parts[0] if len(parts) == 1 else derive_seed(*parts, "rank", 0)
        self.generator = torch.Generator(self.fabric.device).manual_seed(derive_seed(seed, "losses"))

    def state(self) -> list[dict[str, Any]]:
        """The sources of all processes, as plain values and tensors."""
        device = self.fabric.device
        state = {
            "device": device.type,
            "losses": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "numpy": [np.asarray(value).tolist() for value in np.random.get_state()],  # noqa: NPY002
            "python": random.getstate(),
        }
        return gather(self.fabric, state)

    def restore(self, processes: list[dict[str, Any]], *fallback: Any) -> None:
        """Return to a `state`; with other processes or another device, warn and seed by ``fallback`` instead."""
        fabric, device = self.fabric, self.fabric.device.type
        if len(processes) != fabric.world_size or processes[0]["device"] != device:
            warnings.warn(
                f"the state was stored by {len(processes)} process(es) on {processes[0]['device']}; this run has "
                f"{fabric.world_size} on {device}, so it continues with other random draws",
                stacklevel=2,
            )
            self.seed(*fallback)
            return
        state = processes[fabric.global_rank]
        self.generator.set_state(state["losses"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], fabric.device)
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        random.setstate(state["python"])


class EpochLog:
    """Means over the current epoch, and the rows of ``history.csv``.

    Values stay on the device until the epoch ends: reading one would make the host wait for the device.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.first_bad: dict[str, Tensor] = {}  # optimiser → step of its first loss that is not finite
        self.rows: list[dict[str, Any]] = []

    def add(self, key: str, value: Tensor) -> None:
        """Add a value to the epoch's mean of ``key``."""
        self.sums[key] = self.sums.get(key, 0) + value.float()
        self.counts[key] = self.counts.get(key, 0) + 1

    def add_loss(self, key: str, loss: Tensor, step: int) -> None:
        """Add an optimiser's loss, and note the first step at which it is not finite."""
        self.add(f"loss_{key}", loss)
        bad = torch.where(loss.isfinite(), math.inf, step + 1.0)
        self.first_bad[key] = torch.minimum(self.first_bad.get(key, bad), bad)

    def last_loss(self) -> float:
        """Mean loss of the epoch so far, summed over optimisers."""
        return sum(float(v) / self.counts[key] for key, v in self.sums.items() if key.startswith("loss_"))

    def close(self, fabric: Fabric, place: dict[str, int], validation: Mapping[str, float]) -> None:
        """Append the epoch's row: means over all processes, and the validation if there was one."""
        totals: dict[str, np.ndarray] = {}
        for process in gather(fabric, {key: (float(value), self.counts[key]) for key, value in self.sums.items()}):
            for key, value in process.items():
                totals[key] = totals.get(key, 0) + np.array(value)
        means = {key: float(value / count) for key, (value, count) in totals.items()}
        self.rows.append(place | means | dict(validation))
        self.sums, self.counts, self.first_bad = {}, {}, {}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Return to a stored log."""
        self.counts, self.rows = dict(state["counts"]), state["rows"]
        self.sums, self.first_bad = (
            {key: value.to(device) for key, value in state[name].items()} for name in ("sums", "first_bad")
        )


class Loop:
    """Everything that changes from step to step; `state` and `restore` store and recover all of it."""

    def __init__(
        self, fabric: Fabric, method: Method, run: TrainingConfig, seed: int, cache: Path | None, data: Iterable[Batch]
    ) -> None:
        self.fabric, self.method, self.run, self.start_seed = fabric, method, run, seed
        self.settings = method.config
        method.to(fabric.device).train()
        self.random = RandomSources(fabric, method.shared_draws, seed)
        method.prepare(seed, cache, data)
        method.adapt(run, fabric.device)
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
        self.log = EpochLog()
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.peak_memory = 0

    def advance(self, batch: Batch) -> None:
        """One batch: step the optimiser of each loss that the method yields before asking for the next loss."""
        shard = self.fabric.global_rank, self.fabric.world_size
        batch = replace(batch, prior=replace(batch.prior, shard=shard))
        factor = decay_factor(self.settings.decay, self.step, self.total) if self.total else 1.0
        losses = iter(self.method.losses(batch, self.random.generator))
        yielded, loss = self._next(losses)
        while (key := self._turn(yielded)) is not None:
            optimiser = self.optimisers[key]
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimiser.zero_grad()
            if key == yielded:
                self.fabric.backward(loss)
            self._average_gradients(optimiser, key == yielded)
            if (norm := self.run.clip_norm) is not None:
                self.fabric.clip_gradients(self.method, optimiser, max_norm=norm, error_if_nonfinite=False)
            optimiser.step()
            if key == yielded:
                self.log.add_loss(key, loss.detach(), self.step)
                yielded, loss = self._next(losses)
        for key, value in self.method.scalars.items():
            self.log.add(key, value)
        if self.average is not None:
            warmup = self.step < getattr(self.settings, "ema_warmup", 0)
            update_average(self.average, list(self.followed.values()), 0.0 if warmup else self.settings.ema)
        self.step += 1

    def _next(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str | None, Tensor | None]:
        with self.fabric.autocast():
            return next(losses, (None, None))

    def _turn(self, yielded: str | None) -> str | None:
        """The optimiser to step: the first one, in their order, for which any process has a loss.

        A process whose people lack a tracer may have no loss for that tracer's model.
        """
        waiting = {key for key in gather(self.fabric, yielded) if key is not None}
        if unknown := waiting - self.optimisers.keys():
            raise ValueError(f"losses yields {min(unknown)!r}; expected an optimiser: {', '.join(self.optimisers)}")
        return next((key for key in self.optimisers if key in waiting), None)

    def _average_gradients(self, optimiser: torch.optim.Optimizer, has_loss: bool) -> None:
        """Average gradients over the processes with a loss (losses come from a generator, so no wrapper can do it)."""
        if self.fabric.world_size == 1:
            return
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        sizes = [weight.numel() for weight in weights]
        flat = torch.cat([*(weight.grad.flatten() for weight in weights), weights[0].new_full((1,), float(has_loss))])
        *grads, count = self.fabric.all_reduce(flat, reduce_op="sum").split([*sizes, 1])
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad.copy_((grad / count).view_as(weight))

    def fault(self) -> str | None:
        """Which loss of this epoch, or weight now, is not finite; None if all are."""
        first = min(((float(step), key) for key, step in self.log.first_bad.items()), default=(math.inf, ""))
        step, key = min(gather(self.fabric, first))
        if math.isfinite(step):
            return f"the loss of optimiser {key!r} is not finite at step {step:.0f}"
        norms = torch.stack(torch._foreach_norm([weight.detach() for weight in self.trained.values()]))
        return None if bool(norms.isfinite().all()) else f"a weight is not finite after step {self.step}"

    def averaged(self) -> dict[str, Tensor]:
        """Averaged weights and current buffers, on the device."""
        average = zip(self.followed, self.average or self.followed.values(), strict=True)
        return self.changing() | dict(average)

    def changing(self) -> dict[str, Tensor]:
        """Trained weights and persistent buffers: all that differs from the method as built."""
        parameters = dict(self.method.named_parameters())
        return {k: v for k, v in tensors(self.method).items() if k in self.trained or k not in parameters}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the method its averaged weights inside the block."""
        if self.average is None:
            yield
            return
        weights = list(self.followed.values())
        current = [weight.detach().clone() for weight in weights]
        torch._foreach_copy_(weights, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, current)

    def memory(self) -> int:
        """Peak memory in bytes, over all runs of this training: of the GPU, or of the process."""
        self.peak_memory = max(self.peak_memory, peak_memory(self.fabric.device))
        return self.peak_memory

    def state(self) -> dict[str, Any]:
        """All that an exact resume needs, as tensors and plain values. Every process must call it."""
        return {
            **{key: getattr(self, key) for key in ("step", "total", "best", "seconds", "average")},
            "peak_memory": self.memory(),
            "weights": {key: value.detach() for key, value in tensors(self.method).items()},
            "optimisers": {key: optimiser.optimizer.state_dict() for key, optimiser in self.optimisers.items()},
            "scaler": self.fabric.strategy.precision.state_dict(),
            "random": self.random.state(),
            "log": vars(self.log),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to where `state` was taken."""
        device = self.fabric.device
        load_tensors(self.method, state["weights"])
        if self.average is not None:
            torch._foreach_copy_(self.average, [value.to(device) for value in state["average"]])
        for key, optimiser in self.optimisers.items():
            optimiser.optimizer.load_state_dict(state["optimisers"][key])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for key in ("step", "total", "best", "seconds", "peak_memory"):
            setattr(self, key, state[key])
        self.log.restore(state["log"], device)
        self.random.restore(state["random"], self.start_seed, "resumed at", self.step)
