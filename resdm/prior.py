"""The prior-information-guided module (§3.2): a sentence about the person → context of the cross-attention (Eq. 5).

The CLIP ViT-B/32 text tower encodes a prompt. Its last block, final norm and projection are trained, as in the paper.
The blocks below are frozen, so their output is computed once per prompt and cached.

With one pooled text vector as key and value, the softmax of Eq. 5 is 1, and attention adds the same vector at every
voxel. So the context is the 77 token states (``tokens``); ``pooled`` is the literal reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from resdm import attributes
from resdm.batch import TRACERS, Prior
from resdm.layers import clip
from resdm.settings import SEXES, check_person, require


@dataclass(frozen=True)
class TowerConfig:
    """A text tower smaller than CLIP ViT-B/32, for profiles without download."""

    width: int = 128
    heads: int = 4
    layers: int = 3
    embed_dim: int = 128
    pretraining_steps: int = 300  # on prompts alone (recover age, sex, tracer), no image; 0: random weights


@dataclass(frozen=True)
class PriorConfig:
    """The prior-information-guided module (§3.2)."""

    weights: str = "openai"  # "openai", a path of a weights file, or "none" (see tower)
    tower: TowerConfig | None = None  # None: ViT-B/32
    context: Literal["tokens", "pooled"] = "tokens"  # pooled: Eq. 5 to the letter, one key; see the head of this file
    fields: tuple[str, ...] = ("age", "sex")  # of the prompt in addition to the tracer: columns of the manifest
    dropout: float = 0.0  # chance of leaving each field out of a training prompt
    dim: int = 256  # of the projected text

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 ≤ p < 1")
        require(self.weights != "openai" or self.tower is None, "tower", self.tower, "none: openai is ViT-B/32")


_TRACER_WORDS = {"amyloid": "Aβ-PET", "tau": "Tau-PET"}
_SEX_WORDS = {"F": "female", "M": "male"}


def prompt(tracer: str, age: float | None = None, sex: str | None = None, **more: float | str | None) -> str:
    """The released code's sentence and, after ``with``, further attributes (`attributes.phrase`); None is left out.

    >>> prompt("amyloid", 74, "F", education=16.0, waist=92.5)
    'Synthesize an Aβ-PET scan for a 74.0-year-old female subject with 16 years of education, waist 92.5'

    Raises
    ------
    ValueError
        Unknown tracer or sex, or an age outside `resdm.settings.AGE_RANGE`.
    """
    if tracer not in TRACERS:
        raise ValueError(f"unknown tracer {tracer!r}; expected one of {', '.join(TRACERS)}")
    check_person(age, sex, "prompt")
    who = [f"{age:.1f}-year-old"] if age is not None else []
    who += [_SEX_WORDS[sex]] if sex is not None else []
    return " ".join([f"Synthesize an {_TRACER_WORDS[tracer]} scan for a", *who, "subject"]) + attributes.clause(more)


def prompts(prior: Prior) -> list[str]:
    """2B prompts, person by person, tracers in order: the layout of volumes flattened from (B, 2)."""
    return [prompt(tracer, **person) for person in prior.people() for tracer in TRACERS]


@cache
def prompt_tokens(*more: str) -> Tensor:
    """Every CLIP token of prompts, and of ``more`` texts; the tokeniser spells numbers digit by digit."""
    texts = [prompt(tracer, age, sex) for tracer in TRACERS for age in (None, 50.0) for sex in (None, *SEXES)]
    return torch.unique(torch.stack([clip.tokens(text) for text in [*texts, "0 1 2 3 4 5 6 7 8 9", *more]]))


class PriorModule(nn.Module):
    """Prompts → text context; the last part of the tower is trainable, the output of the rest is cached.

    ``config.weights`` is ``"openai"`` (downloaded by open_clip), the path of a CLIP state dictionary (``.safetensors``
    or ``.pt``), or ``"none"``: `resdm.pretraining` then trains a small ``tower`` on prompts.
    """

    def __init__(self, config: PriorConfig, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.known, size = config, {}, config.tower  # known: of further fields, see `resdm.open_prior`
        tokens = prompt_tokens() if tokens is None else tokens
        sizes = {} if size is None else {"width": size.width, "heads": size.heads, "layers": size.layers,
                                         "output_dim": size.embed_dim}  # fmt: skip
        self.tower = clip.text_tower(config.weights, tokens, **sizes)
        self.register_buffer("vocabulary", attributes.vocabulary(tokens), persistent=False)
        self.project = nn.Linear(self.tower.text_projection.shape[1], config.dim)
        self.frozen = nn.ModuleList(self.tower.transformer.resblocks[:-1])
        for module in (self.tower.token_embedding, self.frozen):
            module.requires_grad_(False)
        self.tower.positional_embedding.requires_grad_(False)
        self._cache: dict[tuple[str, bool], Tensor] = {}
        if size is None:  # the eleven frozen blocks of ViT-B/32 are 132 MiB that training reads once per prompt
            clip.map_from_file(self.frozen)

    def forward(self, texts: list[str], *, cached: bool = True) -> Tensor:
        """N prompts → context (N, 77, dim), or (N, 1, dim) if ``context`` is ``pooled``."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        states = torch.stack([self._frozen_state(text, cached) for text in distinct])  # (n, 77, width)
        return self.context(states, [clip.end_of_text(text) for text in distinct])[[distinct[text] for text in texts]]

    def context(self, states: Tensor, ends: list[int] | Tensor) -> Tensor:
        """Frozen states (n, 77, width) → (n, 77, dim); ``pooled``: of the token at ``ends`` (n,) alone, (n, 1, dim)."""
        states = self.tower.transformer.resblocks[-1](states, attn_mask=self.tower.attn_mask)
        states = self.tower.ln_final(states) @ self.tower.text_projection  # (n, 77, embed_dim)
        if self.config.context == "pooled":
            states = states[torch.arange(len(states), device=states.device), ends].unsqueeze(1)  # (n, 1, embed_dim)
        return self.project(states)

    def mask_fields(self, prior: Prior, generator: torch.Generator | None = None) -> Prior:
        """The prior without fields that the configuration leaves out.

        With a ``generator`` (training) each field of each person is also dropped with probability ``dropout``, so that
        prompts without a field (Figures 4 and 5) are not new to the network.
        """
        prior = attributes.select(prior, self.config.fields, self.known)
        if generator is None or self.config.dropout == 0:
            return prior
        draw = torch.rand((len(prior.fields), prior.global_size), generator=generator, device=generator.device)
        return prior.dropped(prior.local(draw < self.config.dropout, dim=1))

    def sentence_features(self, texts: list[str]) -> Tensor:
        """N prompts → (N, width): the frozen blocks' state at each sentence's end, fixed in training, in float32."""
        with torch.autocast(self.vocabulary.device.type, enabled=False):
            return torch.stack([self._frozen_state(text, True)[clip.end_of_text(text)] for text in texts])

    def embed(self, tokens: Tensor) -> Tensor:
        """CLIP token ids (N, 77) → the first block's input (N, 77, width)."""
        return self.tower.token_embedding(self.vocabulary[tokens]) + self.tower.positional_embedding

    @torch.no_grad()
    def _frozen_state(self, text: str, cached: bool) -> Tensor:
        """Output (77, width) of the frozen blocks for one prompt.

        One prompt at a time: the last bit of a matrix product may depend on its batch, and a resumed training fills the
        cache in another order.
        """
        key = text, torch.is_autocast_enabled(self.vocabulary.device.type)
        if cached and key in self._cache:
            return self._cache[key]
        state = self.embed(clip.tokens(text).to(self.vocabulary.device)[None])
        for block in self.frozen:
            state = block(state, attn_mask=self.tower.attn_mask)
        if cached:
            self._cache[key] = state[0]
        return state[0]

    def clear_cache(self) -> None:
        """Empty the cache after a change of the frozen weights, their device or their type."""
        self._cache.clear()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.clear_cache()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args, **kwargs) -> nn.Module:
        self.clear_cache()
        return super()._apply(*args, **kwargs)
