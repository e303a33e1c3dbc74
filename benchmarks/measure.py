"""Measurements of one configuration of a network and its options, timed or counted in a separate process."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from resdm.baselines.released import Released, ReleasedConfig, ReleasedUNet
from resdm.batch import TRACERS, Batch, Prior
from resdm.cpu_runtime import computes_bf16, keep_memory, peak_memory
from resdm.layers import upsampling as upsample
from resdm.layers import wavelet as haar
from resdm.loop import update_average
from resdm.method import Method
from resdm.prior import PriorConfig, TowerConfig
from resdm.residual_diffusion import ResidualDiffusion, ResidualDiffusionConfig
from resdm.settings import TrainingConfig
from resdm.unet import NetworkConfig, UNet
from resdm_suite.apps.prediction import CPU_ATTENTION

FIELD_MM = 192.0
"""Side of the cube that a grid covers, as 128 voxels of 1.5 mm do."""
EMA = 0.9999
CLIP_WORDS = (49408, 512)
"""CLIP's complete token embedding; the suite keeps the tokens of prompts only."""
CLIP_IMAGE_HALF = 87_849_216
"""Weights of ViT-B/32's image tower, which the released main.py loads with the rest of CLIP and never runs."""


@dataclass(frozen=True)
class Case:
    """A network and its options, all off by default.

    Parameters
    ----------
    network : {"released", "monai", "resdm"}
    size : int
        Voxels per axis of the whole grid.
    width : int
        Channels of the first level.
    people : int
        A batch; both tracers of each.
    stem : {"none", "haar"}
    upsampling, together, cache, fused, keep, channels_last, bf16, checkpoint, compiled : bool
        Interpolation and convolution in one call; both tracers in one pass; frozen text features cached; fused AdamW
        and averaging in one call; freed memory kept; memory format; autocast; activation checkpointing; torch.compile.
    threads : int
        CPU threads.
    device : {"cpu", "cuda"}
    """

    network: str
    size: int
    width: int = 32
    people: int = 1
    stem: str = "none"
    upsampling: bool = False
    together: bool = False
    cache: bool = False
    fused: bool = False
    keep: bool = False
    channels_last: bool = False
    bf16: bool = False
    checkpoint: bool = False
    compiled: bool = False
    threads: int = 1
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Input of the network."""
        return (self.size,) * 3


class TracerByTracer(ResidualDiffusion):
    """ResDM with one pass per tracer, as in the released code."""

    def predict(self, x_t: Tensor, mri: Tensor, t: Tensor, context: Tensor, estimate: None = None) -> Tensor:
        """As `ResidualDiffusion.predict`, without a linear path."""
        context = context.unflatten(0, (-1, len(TRACERS)))
        passes = [self.unet(x_t[:, i : i + 1], mri, t, context[:, i]) for i in range(len(TRACERS))]
        return torch.cat(passes, dim=1)


class MonaiUNet(nn.Module):
    """MONAI's `DiffusionModelUNet` of the released widths, called as ours; it reads no text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet  # here: MONAI needs three seconds

        channels = tuple(width * m for m in (1, 2, 4, 8))
        self.net = DiffusionModelUNet(
            spatial_dims=3, in_channels=2, out_channels=1, channels=channels, num_res_blocks=1,
            attention_levels=(False, False, False, True), num_head_channels=channels[-1], norm_num_groups=width,
        )  # fmt: skip

    def forward(self, x_t: Tensor, y0: Tensor, t: Tensor, context: Tensor, maps: None = None) -> Tensor:
        """Predict x_0 (B, 1, X, Y, Z)."""
        return self.net(torch.cat([x_t, y0], dim=1), t)


def network(case: Case) -> NetworkConfig:
    """Our network's settings."""
    return NetworkConfig(
        width=case.width, norm_groups=case.width, stem=case.stem,
        fused_upsampling=case.upsampling, checkpoint_activations=case.checkpoint,
    )  # fmt: skip


_THEIRS = {"released": ReleasedUNet, "monai": MonaiUNet}


def build(case: Case) -> Method:
    """A method with fresh weights; the text tower is ViT-B/32, or at small widths a small one."""
    torch.manual_seed(0)
    tower = TowerConfig(width=32, heads=2, layers=2, embed_dim=32) if case.width < 32 else None
    prior = PriorConfig(weights="none", tower=tower, dim=8 * case.width)
    if case.network == "released":
        method = Released(ReleasedConfig(width=case.width, prior=replace(prior, context="pooled")), case.shape)
    else:
        kind = ResidualDiffusion if case.together else TracerByTracer
        method = kind(ResidualDiffusionConfig(network=network(case), prior=prior), case.shape)
    if case.network == "monai":
        method.unet = MonaiUNet(case.width)
    if not case.cache:
        method.prior.forward = partial(method.prior.forward, cached=False)
        if tower is None:
            method.prior.tower.token_embedding = nn.Embedding(*CLIP_WORDS).requires_grad_(False)
    if case.network == "released" and tower is None:
        method.image_half = nn.Parameter(torch.ones(CLIP_IMAGE_HALF), requires_grad=False)
    return method


def random_batch(case: Case) -> Batch:
    """Random volumes in [0, 1], nothing missing."""
    draw = torch.Generator().manual_seed(1)
    volumes = torch.rand((case.people, 1 + len(TRACERS), *case.shape), generator=draw)
    prior = Prior(tuple(60.0 + i for i in range(case.people)), tuple("FM"[i % 2] for i in range(case.people)))
    present = torch.ones((case.people, len(TRACERS)), dtype=torch.bool)
    return Batch(volumes[:, :1], volumes[:, 1:], present, prior).to(case.device)


class Stepper:
    """A training step as `resdm.training` takes it: losses, backward, AdamW, averaging."""

    def __init__(self, case: Case, method: Method) -> None:
        self.case, self.method = case, method
        trained = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
        self.optimiser = torch.optim.AdamW(trained.values(), lr=1e-4, **({"fused": True} if case.fused else {}))
        self.weights = [weight for name, weight in trained.items() if method.averages(name)]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.generator = torch.Generator(case.device).manual_seed(2)

    def states(self) -> int:
        """Bytes that persist between steps: weights (without the text tower's mapped file), moments, average."""
        mapped = {id(weight) for weight in self.method.prior.frozen.parameters()} if self.case.cache else set()
        tensors = [weight for weight in self.method.parameters() if id(weight) not in mapped]
        tensors += [value for state in self.optimiser.state.values() for value in state.values()]
        return sum(tensor.untyped_storage().nbytes() for tensor in [*tensors, *self.average])

    def __call__(self, batch: Batch) -> None:
        """One step."""
        self.optimiser.zero_grad()
        with autocast(self.case):
            ((_, loss),) = self.method.losses(batch, self.generator)
        loss.backward()
        self.optimiser.step()
        if self.case.fused:
            update_average(self.average, self.weights, EMA)
        else:
            for average, weight in zip(self.average, self.weights, strict=True):
                average.mul_(EMA).add_(weight.detach(), alpha=1 - EMA)


def autocast(case: Case) -> contextlib.AbstractContextManager:
    """bfloat16 autocast if the case has ``bf16``."""
    return torch.autocast(case.device, torch.bfloat16) if case.bf16 else contextlib.nullcontext()


# ── measured time and memory ──────────────────────────────────────────────────────────────────────


class Ledger(TorchDispatchMode):
    """Bytes of the tensors created inside the block, current and peak: the count of `torch.cuda`, on any device.

    A storage that several tensors share counts once, until its last tensor is freed. Workspaces of libraries do not
    count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known: set[int] = set()  # storages that exist, from before the block too

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and record its outputs."""
        self._note((args, kwargs), counts=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, counts=True)
        self.peak = max(self.peak, self.now)
        return out

    def _note(self, tensors: Any, counts: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._known:
                self._known.add(key)
                self.now += (size := storage.nbytes() * counts)
                weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def warm_libraries() -> None:
    """Load the libraries' code, which is not part of a method's memory."""
    x, layers = torch.rand(1, 2, 8, 8, 8), nn.Sequential(nn.Conv3d(2, 2, 3), nn.GroupNorm(1, 2), nn.Linear(6, 2))
    layers(x).sum().backward()
    torch.optim.AdamW(layers.parameters(), fused=True).step()


def resident() -> int:
    """Bytes that this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return high_water()


def high_water() -> int:
    """Peak memory of this process in bytes, since `reset_high_water` where the system supports a reset."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return peak_memory(torch.device("cpu"))


def reset_high_water() -> None:
    """Reset `high_water`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def timed(run: Callable[[], Any], device: str, seconds: float, least: int = 1, most: int = 9) -> list[float]:
    """Times of at least ``least`` repeats, until ``seconds`` have passed, at most ``most``; the caller warms up."""
    times: list[float] = []
    while len(times) < most and (len(times) < least or sum(times) < seconds):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def measure(case: Case, seconds: float, least: int) -> dict[str, Any]:
    """Median time and peak memory of a training step and of synthesis in 15 and in 2 steps, for the whole batch.

    A CPU is warmed up by a step on a grid half as wide (threads, allocator, the optimiser's moments), since a step of
    the references takes half a minute. A GPU chooses kernels by shape, so it is warmed up by steps of this grid. If 15
    steps would take longer than ``seconds``, one is timed and multiplied by 15. The text is encoded once per synthesis.

    Returns
    -------
    dict
        ``train_s``, ``train_repeats``; ``train_peak_bytes``: peak memory of tensors in a step (on a GPU by
        `torch.cuda.max_memory_allocated`, on a CPU by a `Ledger` in one more step); ``states_bytes``: the part of it
        that persists between steps (weights, moments, average); ``process_bytes``: growth of the process since before
        the method was built, unused memory of allocators included (on a GPU: reserved by the allocator);
        ``sample15_s``, ``sample2_s`` and ``sample_steps_timed``.
    """
    torch.set_num_threads(case.threads)
    if case.keep:
        keep_memory()
    cuda = case.device == "cuda"
    batch = random_batch(case)
    warm_libraries()
    base = resident()
    small = batch if cuda else random_batch(replace(case, size=max(16, case.size // 4)))
    method = build(case).to(case.device).train()
    layout_and_kernels = TrainingConfig(channels_last=case.channels_last, compile=case.compiled)
    method.adapt(layout_and_kernels, torch.device(case.device))
    step = Stepper(case, method)
    for _ in range(3 if cuda else 1):
        step(small)
    step.optimiser.zero_grad()
    results: dict[str, Any] = {"states_bytes": step.states()}
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    reset_high_water()
    train = timed(partial(step, batch), case.device, seconds, least)
    results |= {"train_s": statistics.median(train), "train_repeats": len(train)}
    results["process_bytes"] = torch.cuda.max_memory_reserved() if cuda else high_water() - base
    if cuda:
        results["train_peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        step.optimiser.zero_grad()
        with Ledger() as ledger:
            step(batch)
        results["train_peak_bytes"] = results["states_bytes"] + ledger.peak
    del step
    method.eval().requires_grad_(False)

    def sample(n: int, batch: Batch = batch) -> None:
        with torch.no_grad(), autocast(case):
            method.synthesise(batch.mri, batch.prior, torch.Generator(case.device).manual_seed(3), steps=n)

    def encode() -> None:
        with torch.no_grad(), autocast(case):
            (method.text if case.network == "released" else method.context)(batch.prior)

    sample(1, small)
    text = statistics.median(timed(encode, case.device, 0, least=3))
    one = statistics.median(timed(partial(sample, 1), case.device, seconds / 8)) - text  # one pass per tracer
    if 15 * one > seconds:
        return results | {"sample15_s": text + 15 * one, "sample2_s": text + 2 * one, "sample_steps_timed": 1}
    results["sample15_s"] = statistics.median(timed(partial(sample, 15), case.device, seconds / 2))
    results["sample2_s"] = statistics.median(timed(partial(sample, 2), case.device, seconds / 8))
    return results | {"sample_steps_timed": 15}


def peak_rates(device: str, threads: int, quick: bool) -> dict[str, float]:
    """The machine's best measured GFLOP/s: a square matrix product, and a 3 × 3 × 3 convolution."""
    torch.set_num_threads(threads)
    keep_memory()
    rates = {}
    for kind in (torch.float32, torch.bfloat16)[: 1 + (device == "cuda" or computes_bf16())]:
        n = 256 if quick else 8192 if device == "cuda" else 2048
        a, b = (torch.rand(n, n, device=device, dtype=kind) for _ in range(2))
        side = 16 if quick else 96 if device == "cuda" else 32
        x, weight = (
            torch.rand(*shape, device=device, dtype=kind).to(memory_format=torch.channels_last_3d)
            for shape in ((2, 64, side, side, side), (64, 64, 3, 3, 3))
        )
        name = str(kind).removeprefix("torch.")
        for what, run, flop in (
            ("matmul", partial(torch.mm, a, b), 2 * n**3),
            ("conv", partial(nn.functional.conv3d, x, weight, padding=1), 2 * 2 * 64 * 64 * 27 * side**3),
        ):
            rates[f"{what}_{name}_gflop_s"] = flop / min(timed(run, device, 2.0, least=4, most=50)) / 1e9
    return rates


# ── counted from shapes ───────────────────────────────────────────────────────────────────────────


def count(case: Case) -> dict[str, float]:
    """FLOPs and saved bytes of the network alone, from shapes (fake tensors): nothing is computed.

    Returns
    -------
    dict
        ``pass_gflop``: forward, one volume; ``step_gflop``: forward and backward of the batch's volumes;
        ``saved_bytes``: tensors saved for the backward pass, without weights; ``weight_bytes`` and ``parameters`` of
        the network.
    """
    forget_constants()
    with FakeTensorMode():
        ours = case.network == "resdm"
        unet = UNet(network(case), 8 * case.width) if ours else _THEIRS[case.network](case.width)
        volumes, width = case.people * len(TRACERS), 8 * case.width
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as forward, torch.no_grad():
            _call(unet, case, 1, width)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as whole, Ledger() as ledger:
            together = volumes if case.together else case.people
            with autocast(replace(case, device="cpu")):
                outputs = [_call(unet, case, together, width) for _ in range(volumes // together)]
            saved = ledger.now
            sum(output.float().square().mean() for output in outputs).backward()
        counts = {
            "pass_gflop": forward.get_total_flops() / 1e9,
            "step_gflop": whole.get_total_flops() / 1e9,
            "saved_bytes": saved,
            "weight_bytes": sum(w.numel() * w.element_size() for w in unet.parameters()),
            "parameters": sum(w.numel() for w in unet.parameters()),
        }
    forget_constants()
    return counts


def forget_constants() -> None:
    """Keep real and fake tensors apart."""
    for constant in (haar._basis, upsample._spread):
        constant.cache_clear()


def _call(unet: nn.Module, case: Case, n: int, width: int) -> Tensor:
    x, y0 = (torch.empty((n, 1, *case.shape)) for _ in range(2))
    t = torch.zeros(n, dtype=torch.long)
    tokens = torch.empty((n, 1 if case.network == "released" else 77, width))
    return unet(x, t, tokens) if case.network == "released" else unet(x, y0, t, tokens)
