"""Pretraining of a small text tower on prompts alone: an addition of this suite, not part of the paper.

Frozen states of a random tower are nearly the same for two ages. Where CLIP's weights cannot be downloaded, a small
tower is first trained to recover age, sex, tracer and further attributes from the sentence, without images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from resdm.attributes import draw_prompts
from resdm.layers import clip
from resdm.prior import PriorModule, prompt
from resdm.weights import read_weights, save_weights

_BATCH = 16  # prompts of a step
REVISION = 3
"""Raise it when a change of this module changes its result: cached towers of an older revision are not used."""


def pretrain_text_tower(prior: PriorModule, seed: int, folder: Path | None = None) -> float:
    """Train the whole tower on random prompts, then freeze its lower part again.

    One readout uses the output states from the sentence end on, as cross-attention starts nearly uniform. Another uses
    the frozen states, which lacked the age of long sentences. A tower with pretrained weights, or without such a step,
    stays as it is. ``folder`` caches towers that methods share. Returns the correlation of read and true age, or NaN.
    """
    size, tower, device = prior.config.tower, prior.tower, prior.project.weight.device
    if size is None or prior.config.weights != "none" or size.pretraining_steps == 0:
        return float("nan")
    path = None if folder is None else folder / f"{_cache_key(prior, seed)}.safetensors"
    if path is not None and path.is_file():
        meta, values = read_weights(path, "a pretrained text tower", "train again: it is pretrained anew")
        tower.load_state_dict(values)
        prior.clear_cache()
        return meta["correlation"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        contents = draw_prompts(1, torch.Generator(), prior.known)[1].shape[1]
        readout, early = (nn.Linear(width, contents).to(device) for width in (size.embed_dim, size.width))
    generator = torch.Generator().manual_seed(seed)
    weights = [*tower.parameters(), *readout.parameters(), *early.parameters()]
    trainable = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=size.pretraining_steps)
    ages, recovered = [], []
    for step in range(size.pretraining_steps):
        people, target = draw_prompts(_BATCH, generator, prior.known)
        texts, target = [prompt(**person) for person in people], target.to(device)
        ends = torch.tensor([clip.end_of_text(text) for text in texts], device=device)
        states = prior.embed(torch.stack([clip.tokens(text) for text in texts]).to(device))
        for block in tower.transformer.resblocks:
            features, states = early(states), block(states, attn_mask=tower.attn_mask)  # of the last block's input
        output = readout(tower.ln_final(states) @ tower.text_projection)  # (batch, 77, 4 + k)
        used = torch.arange(output.shape[1], device=device) >= ends[:, None]  # (batch, 77)
        error = (torch.stack([output, features]) - target[:, None])[:, used]
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
        schedule.step()
        if step >= min(0.75 * size.pretraining_steps, size.pretraining_steps - 1):
            has_age = target[:, 1] > 0
            ages.append(target[has_age, 0])
            recovered.append(output[torch.arange(_BATCH, device=device), ends][has_age, 0].detach())
    for weight, before in zip(weights, trainable, strict=True):
        weight.requires_grad_(before)
        weight.grad = None
    prior.clear_cache()
    correlation = float(torch.corrcoef(torch.stack([torch.cat(ages), torch.cat(recovered)]))[0, 1])
    if path is not None:
        save_weights(path, tower.state_dict(), {"correlation": correlation})
    return correlation


def _cache_key(prior: PriorModule, seed: int) -> str:
    """Digest of everything that the result depends on: settings, first weights, revision, torch, device and threads."""
    weight = prior.project.weight
    parts = [prior.config.tower, seed, _BATCH, REVISION, torch.__version__, weight.device.type, torch.get_num_threads()]
    digest = hashlib.sha256("/".join(map(str, [*parts, prior.known])).encode())
    for value in prior.tower.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
