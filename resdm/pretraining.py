"""First lessons of a text tower without pretrained weights: an addition of this suite, no part of the paper.

CLIP knows English before it sees a PET. A tower drawn at random does not: frozen as the paper freezes CLIP, its states
for two ages are nearly the same vector, and prompting gains nothing. Where CLIP's weights cannot be downloaded, a small
tower earns its language here: it learns to recover age, sex and tracer from the sentence, and sees no image.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resdm.batch import TRACERS
from resdm.io import atomic, sha256
from resdm.layers import clip
from resdm.prior import PriorModule, prompt
from resdm.settings import AGE_RANGE, SEXES


def learn_language(prior: PriorModule, seed: int, batch: int = 16, folder: Path | None = None) -> float:
    """Train the whole tower on random prompts, then leave its frozen part frozen again.

    Every state from the end of the sentence on answers, padding included: cross-attention starts nearly uniform over
    the 77 states, and would hear little if only one of them knew. Does nothing to a tower with weights of its own, or
    where the configuration gives no lessons.

    Parameters
    ----------
    prior : PriorModule
    seed : int
    batch : int
        Prompts a lesson.
    folder : Path, optional
        Where a tower that has had its lessons is kept: the methods of a profile start with the same tower, and the next
        takes it from there, in the same bits.

    Returns
    -------
    float
        Correlation of recovered with spoken age over the last quarter of the lessons; NaN without lessons.
    """
    size, tower, device = prior.config.tower, prior.tower, prior.project.weight.device
    if size is None or prior.config.weights != "none" or size.lessons == 0:
        return float("nan")
    path = None if folder is None else folder / f"{_digest(prior, seed, batch)}.safetensors"
    if path is not None and path.is_file():
        values = load_file(path, device=str(device))
        correlation = values.pop("correlation").item()
        tower.load_state_dict(values)
        prior.forget()
        return correlation
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        readout = nn.Linear(size.embed_dim, 4).to(device)
    generator = torch.Generator().manual_seed(seed)
    weights = [*tower.parameters(), *readout.parameters()]
    trainable = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=size.lessons)
    spoken, recovered = [], []
    for lesson in range(size.lessons):
        texts, target = _lesson(batch, generator)
        target = target.to(device)
        ends = torch.tensor([clip.end_of_text(text) for text in texts], device=device)
        states = prior.embed(torch.stack([clip.tokens(text) for text in texts]).to(device))
        states = tower.transformer(states, attn_mask=tower.attn_mask)
        answer = readout(tower.ln_final(states) @ tower.text_projection)  # (batch, 77, 4)
        answers = torch.arange(answer.shape[1], device=device) >= ends[:, None]  # (batch, 77)
        error = (answer - target[:, None])[answers]
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
        schedule.step()
        if lesson >= 0.75 * size.lessons:
            said = target[:, 1] > 0
            spoken.append(target[said, 0])
            recovered.append(answer[torch.arange(batch, device=device), ends][said, 0].detach())
    for weight, was in zip(weights, trainable, strict=True):
        weight.requires_grad_(was)
        weight.grad = None
    prior.forget()
    correlation = torch.corrcoef(torch.stack([torch.cat(spoken), torch.cat(recovered)]))[0, 1]
    if path is not None:
        values = tower.state_dict() | {"correlation": correlation}
        with atomic(path) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, temporary)
    return float(correlation)


def _digest(prior: PriorModule, seed: int, batch: int) -> str:
    """All that the lessons' result depends on: settings, first weights, this code, and who computes."""
    weight = prior.project.weight
    parts = [prior.config.tower, seed, batch, sha256(__file__), torch.__version__, weight.device.type]
    found = hashlib.sha256("/".join(map(str, [*parts, torch.get_num_threads()])).encode())
    for value in prior.tower.state_dict().values():
        found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _lesson(n: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """N prompts and what they say, (n, 4): age in standard deviations (0 unsaid), age said, sex (−1, 0, 1), tracer."""
    low, high = AGE_RANGE
    texts, target = [], torch.zeros(n, 4)
    for i, (a, says_age, s, says_sex, c) in enumerate(torch.rand((n, 5), generator=generator).tolist()):
        age = round(low + (high - low) * a, 1) if says_age < 0.8 else None
        sex = SEXES[int(2 * s)] if says_sex < 0.8 else None
        tracer = TRACERS[int(2 * c)]
        texts.append(prompt(tracer, age, sex))
        target[i] = torch.tensor([
            0.0 if age is None else (age - (low + high) / 2) / ((high - low) / 4),
            float(age is not None),
            0.0 if sex is None else 2.0 * SEXES.index(sex) - 1,
            2.0 * TRACERS.index(tracer) - 1,
        ])  # fmt: skip
    return texts, target
