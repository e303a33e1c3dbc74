"""The prior-information-guided module (§3.2): a sentence about the person → context of the cross-attention (Eq. 5).

A prompt goes through the CLIP ViT-B/32 text tower. Its last block, final norm and projection are trained, as in the
paper; what lies below is frozen, so its output is computed once a prompt and kept, and the weights lie in a file.

A trap in Eq. 5: with one pooled text vector as key and value, the softmax over a single key is 1, and attention adds
the same vector at every voxel. So the context is the 77 token states (``tokens``); ``pooled`` is the literal reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from resdm.batch import TRACERS, Prior
from resdm.layers import clip
from resdm.settings import SEXES, Demand, check_person


@dataclass(frozen=True)
class TowerConfig:
    """A text tower smaller than CLIP ViT-B/32, for profiles without download."""

    width: int = 128
    heads: int = 4
    layers: int = 3
    embed_dim: int = 128
    lessons: int = 300  # optimiser steps on prompts alone (recover age, sex, tracer), no image; 0: random weights


@dataclass(frozen=True)
class PriorConfig:
    """The prior-information-guided module (§3.2)."""

    weights: str = "openai"  # "openai", a path of a weights file, or "none" (see tower)
    tower: TowerConfig | None = None  # None: ViT-B/32
    context: Literal["tokens", "pooled"] = "tokens"  # pooled: Eq. 5 to the letter, one key: see docs of prior.py
    fields: tuple[Literal["age", "sex"], ...] = ("age", "sex")  # what the prompt says beside the tracer
    dropout: float = 0.0  # chance of leaving age, and of leaving sex, out of a training prompt
    dim: int = 256  # of the projected text

    def check(self, at: str, demand: Demand) -> None:
        """Ranges and combinations that types cannot say."""
        demand(0 <= self.dropout < 1, f"{at}.dropout is {self.dropout}; expected 0 ≤ p < 1")
        demand(
            self.weights != "openai" or self.tower is None,
            f"{at}: the openai weights are of ViT-B/32; leave tower out",
        )


_SPOKEN_TRACER = {"amyloid": "Aβ-PET", "tau": "Tau-PET"}
_SPOKEN_SEX = {"F": "female", "M": "male"}


def prompt(tracer: str, age: float | None = None, sex: str | None = None) -> str:
    """The released code's sentence; what is ``None`` is left out of it.

    >>> prompt("amyloid", 74, "F")
    'Synthesize an Aβ-PET scan for a 74.0-year-old female subject'

    Raises
    ------
    ValueError
        Unknown tracer or sex, or an age outside `resdm_suite.profiles.AGE_RANGE`.
    """
    if tracer not in TRACERS:
        raise ValueError(f"unknown tracer {tracer!r}; expected one of {', '.join(TRACERS)}")
    check_person(age, sex, "prompt")
    who = [f"{age:.1f}-year-old"] if age is not None else []
    who += [_SPOKEN_SEX[sex]] if sex is not None else []
    return " ".join([f"Synthesize an {_SPOKEN_TRACER[tracer]} scan for a", *who, "subject"])


def prompts(prior: Prior) -> list[str]:
    """2B prompts, person by person, each with its tracers in order: the layout of volumes flattened from (B, 2)."""
    return [prompt(tracer, age, sex) for age, sex in zip(prior.age, prior.sex, strict=True) for tracer in TRACERS]


class PriorModule(nn.Module):
    """Prompts → text context, the last part of the tower trainable and the rest cached.

    Parameters
    ----------
    config : PriorConfig
        ``weights``: ``"openai"`` (downloaded by open_clip), the path of a state dictionary in CLIP's format
        (``.safetensors`` or ``.pt``), or ``"none"``. ``tower``: a smaller tower.

    Notes
    -----
    A randomly drawn, frozen tower is nearly deaf to a digit that differs; a tower without pretrained weights first
    takes lessons on prompts alone (`resdm.pretraining`).
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        known, size = prompt_tokens(), config.tower
        own = {} if size is None else {"width": size.width, "heads": size.heads, "layers": size.layers,
                                       "output_dim": size.embed_dim}  # fmt: skip
        self.tower = clip.text_tower(config.weights, known, **own)
        vocabulary = torch.full((int(known.max()) + 1,), -1, device=known.device)
        vocabulary[known] = torch.arange(len(known), device=known.device)
        self.register_buffer("vocabulary", vocabulary, persistent=False)  # CLIP token id → the tower's own
        self.project = nn.Linear(self.tower.text_projection.shape[1], config.dim)
        self.frozen = nn.ModuleList(self.tower.transformer.resblocks[:-1])
        for module in (self.tower.token_embedding, self.frozen):
            module.requires_grad_(False)
        self.tower.positional_embedding.requires_grad_(False)
        self._cache: dict[str, Tensor] = {}
        if size is None:  # the eleven frozen blocks of ViT-B/32 are 132 MiB that training reads once per prompt
            clip.map_from_file(self.frozen)

    def forward(self, texts: list[str], *, cached: bool = True) -> Tensor:
        """N prompts → context (N, 77, dim), or (N, 1, dim) where ``context`` is ``pooled``."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # conditions often share a sentence
        states = torch.stack([self._frozen_state(text, cached) for text in distinct])  # (n, 77, width)
        states = self.tower.transformer.resblocks[-1](states, attn_mask=self.tower.attn_mask)
        states = self.tower.ln_final(states) @ self.tower.text_projection  # (n, 77, embed_dim)
        if self.config.context == "pooled":
            ends = torch.tensor([clip.end_of_text(text) for text in distinct], device=states.device)
            states = states[torch.arange(len(states), device=states.device), ends].unsqueeze(1)  # (n, 1, embed_dim)
        return self.project(states)[[distinct[text] for text in texts]]

    def spoken(self, prior: Prior, generator: torch.Generator | None = None) -> Prior:
        """The prior as the prompt says it: fields not configured are left out, and others now and then in training.

        With a ``generator`` each field of each person is dropped with probability ``dropout``: without it, prompts
        that leave a field out (Figures 4 and 5) would be new to the network.
        """
        prior = prior.without(*({"age", "sex"} - set(self.config.fields)))
        if generator is None or self.config.dropout == 0:
            return prior
        draw = torch.rand((2, prior.global_size), generator=generator, device=generator.device) < self.config.dropout
        drop_age, drop_sex = prior.local(draw, dim=1).tolist()
        return Prior(
            tuple(None if gone else age for gone, age in zip(drop_age, prior.age, strict=True)),
            tuple(None if gone else sex for gone, sex in zip(drop_sex, prior.sex, strict=True)),
        )

    def sentences(self, texts: list[str]) -> Tensor:
        """N prompts → features (N, width): the frozen blocks' state at the end of each; training leaves it as it is."""
        return torch.stack([self._frozen_state(text, True)[clip.end_of_text(text)] for text in texts])

    def embed(self, tokens: Tensor) -> Tensor:
        """CLIP token ids (N, 77) → the first block's input (N, 77, width)."""
        return self.tower.token_embedding(self.vocabulary[tokens]) + self.tower.positional_embedding

    @torch.no_grad()
    def _frozen_state(self, text: str, cached: bool) -> Tensor:
        """Output (77, width) of the frozen blocks for one prompt.

        One prompt at a time, whatever the batch: a matrix product's last bit may depend on its batch, and a resumed
        training, whose cache fills in another order, must end in the same bits.
        """
        state = self._cache.get(text) if cached else None
        if state is None:
            state = self.embed(clip.tokens(text).to(self.vocabulary.device)[None])
            for block in self.frozen:
                state = block(state, attn_mask=self.tower.attn_mask)
            state = state[0]
            if cached:
                self._cache[text] = state
        return state

    def forget(self) -> None:
        """Empty the cache: the frozen weights, their device or their type have changed."""
        self._cache.clear()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args, **kwargs) -> nn.Module:
        self.forget()
        return super()._apply(*args, **kwargs)


@cache
def prompt_tokens() -> Tensor:
    """Every CLIP token that a prompt can hold, all that a tower knows; the tokeniser spells numbers digit by digit."""
    texts = [prompt(tracer, age, sex) for tracer in TRACERS for age in (None, 50.0) for sex in (None, *SEXES)]
    return torch.unique(torch.stack([clip.tokens(text) for text in [*texts, "0 1 2 3 4 5 6 7 8 9"]]))
