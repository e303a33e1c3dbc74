"""Record the steps of a residual diffusion for Figure 1."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resdm.batch import TRACERS, Batch
from resdm.io import atomic
from resdm.layers import clip
from resdm.prior import prompts
from resdm.residual_diffusion import ResidualDiffusion
from resdm.unet import UNet
from resdm_suite.apps.prediction import Model
from resdm_suite.evaluation.image_quality import has_all_tracers
from resdm_suite.preprocessing.dataset import CohortDataset, collate
from resdm_suite.profiles import MIN_GROUP_SIZE

STATES = 6
"""Number of states that are stored of each path: one per column of the figure."""

TRACED = 20
"""Largest number of participants in a mean trace; each costs one synthesis."""


def spell(text: str) -> list[str]:
    """The 77 CLIP tokens as words and word parts; padding is empty."""
    tokens, end = clip.tokens(text), clip.end_of_text(text)
    words = [clip.tokeniser().decode([token]).strip() for token in tokens[1:end].tolist()]
    return ["<start>", *words, "<end>", *[""] * (len(tokens) - end - 1)]


def attention_map(
    unet: UNet, x_t: Tensor, y0: Tensor, t: Tensor, context: Tensor, maps: Tensor | None = None
) -> Tensor:
    """Softmax of Eq. 5 at the bottleneck, mean over heads: (B, tokens, x, y, z); arguments as in `UNet.forward`."""
    x, _, _ = unet.encode(x_t, y0, t, maps)
    q, k, _ = unet.cross_attention.project(x, context)  # (B, heads, voxels, d), (B, heads, tokens, d)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)  # (B, voxels, tokens)
    return weights.transpose(1, 2).unflatten(2, x.shape[2:])


@torch.no_grad()
def trace(method: ResidualDiffusion, batch: Batch, generator: torch.Generator) -> dict[str, np.ndarray]:
    """Eq. 1 along t, Eq. 3 back, and the softmax of Eq. 5 where the reverse path starts; a batch of one person.

    Returns
    -------
    dict of str to ndarray
        ``mri`` (X, Y, Z) is y_0, ``pet`` (2, X, Y, Z) x_0, ``eta`` (T,) the shifting sequence.
        ``forward_t`` (n,), ``forward`` (2, n, X, Y, Z): x_t of the real PET, t counted from 1 as in the paper.
        ``reverse_t`` (m,), ``reverse`` (2, m, X, Y, Z): the states of sampling, x_T first and x_0 (t = 0) last.
        ``attention`` (2, groups, x, y, z), ``attention_names`` (groups,): the share of the cross-attention that a group
        of tokens receives at each voxel of the bottleneck, mean over heads, for the amyloid and the tau prompt.
        ``prompts`` (2,).
    """
    scheduler, mri, x0 = method.scheduler, batch.mri, batch.pet
    y0 = mri.expand_as(x0)  # (1, 2, X, Y, Z)
    forward_t = _spread(scheduler.steps)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    forward = [scheduler.add_noise(x0, y0, noise, torch.tensor([t], device=x0.device)) for t in forward_t]
    state = generator.get_state()
    x_start = scheduler.start(y0, generator)
    generator.set_state(state)  # so that the path below draws the same start
    path = [(scheduler.steps, x_start)]
    for t, _, x in method.reverse(mri, batch.prior, generator):
        path[-1] = (t + 1, path[-1][1])
        path.append((0, x))
    path = [path[i] for i in _spread(len(path))]
    last = torch.full((len(TRACERS),), scheduler.steps - 1, device=mri.device)
    estimate = method.estimate(mri, batch.prior)
    maps = None if estimate is None else method.linear.maps(mri, estimate)[0]
    both, context = mri.repeat_interleave(len(TRACERS), 0), method.context(batch.prior)
    attention = attention_map(method.unet, x_start.transpose(0, 1), both, last, context, maps)  # (2, tokens, x, y, z)
    texts = prompts(method.prior.mask_fields(batch.prior))
    return {
        "mri": _array(mri[0, 0]),
        "pet": _array(x0[0]),
        "eta": scheduler.etas.cpu().numpy(),
        "forward_t": np.array(forward_t) + 1,
        "forward": _array(torch.stack([x[0] for x in forward], dim=1)),
        "reverse_t": np.array([t for t, _ in path]),
        "reverse": _array(torch.stack([x[0] for _, x in path], dim=1)),
        "attention": _array(torch.stack([_grouped(a, text) for a, text in zip(attention, texts, strict=True)])),
        "attention_names": np.array(list(_GROUPS)),
        "prompts": np.array(texts),
    }


_GROUPS = {
    "age": lambda word: word in [*"0123456789.", "-", "year", "old"],
    "sex": lambda word: word in ("female", "male"),
    "other words": lambda word: word not in ("", "<start>", "<end>"),
    "start of text": lambda word: word == "<start>",
    "end and padding": lambda word: word in ("", "<end>"),
}


def _grouped(attention: Tensor, text: str) -> Tensor:
    """(tokens, x, y, z) → (groups, x, y, z): each token counts for the first group that takes its word."""
    owner = [next(i for i, takes in enumerate(_GROUPS.values()) if takes(word)) for word in spell(text)]
    if len(attention) != len(owner):  # pooled context has one key, which is every word at once
        owner = [list(_GROUPS).index("other words")] * len(attention)
    sums = attention.new_zeros(len(_GROUPS), *attention.shape[1:])
    return sums.index_add_(0, torch.tensor(owner, device=attention.device), attention)


def _spread(n: int) -> list[int]:
    """Up to `STATES` of the indices 0 … n−1, evenly, first and last included."""
    return np.unique(np.linspace(0, n - 1, STATES).round().astype(int)).tolist()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def write_trace(model: Model, data: CohortDataset, out: Path, *, individual: bool = True) -> None:
    """Write ``trace.npz``, the data of Figure 1, of the first participant with all tracers that anyone has.

    Where single participants must not be shown, it holds the means over the first `TRACED` such participants and their
    number (``people``), without prompts; it is not written for fewer than `MIN_GROUP_SIZE` of them.
    """
    (out / "trace.npz").unlink(missing_ok=True)
    if not isinstance(model.method, ResidualDiffusion):
        return
    sums: dict[str, Any] = {}
    seen: set[str] = set()
    for number in np.flatnonzero(has_all_tracers(data.index)):
        person = data.index["person"].iloc[number]
        if person in seen or len(seen) == (1 if individual else TRACED):
            continue
        batch = collate([data[number]])
        generator = torch.Generator(model.device).manual_seed(model.card.config.seed)
        tensors = trace(model.method, batch.to(model.device), generator)
        seen.add(person)
        for key, value in tensors.items():
            mean = key in sums and np.issubdtype(value.dtype, np.floating)
            sums[key] = sums[key] + value if mean else sums.get(key, value)
    if len(seen) >= (1 if individual else MIN_GROUP_SIZE):
        if not individual:
            sums = {k: v / len(seen) if np.issubdtype(v.dtype, np.floating) else v for k, v in sums.items()}
            del sums["prompts"]
            sums["people"] = np.array(len(seen))
        with atomic(out / "trace.npz") as temporary:
            np.savez_compressed(temporary, **sums)
