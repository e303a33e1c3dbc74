"""The prior module for prompts with more than age and sex, an addition of this suite: see `resdm.attributes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from resdm import attributes
from resdm.batch import TRACERS, Prior
from resdm.layers import clip
from resdm.prior import PriorConfig, PriorModule, prompt, prompt_tokens
from resdm.settings import SEXES, further


def prior_module(config: PriorConfig) -> PriorModule:
    """The module for the configuration's fields: the paper's for age and sex."""
    return (OpenPrior if further(config.fields) else PriorModule)(config)


class OpenPrior(PriorModule):
    """A `PriorModule` whose words and ranges come from the training people; they are stored with the weights."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.register_buffer("catalogue", torch.zeros(0, dtype=torch.uint8))  # `known`, as bytes

    def learn(self, prior: Prior, seed: int, people: Sequence[str] = ()) -> None:
        """Learn ranges and categories from training sessions of ``people``, and build a tower with their words.

        Raises
        ------
        ValueError
            A field that cannot be learned, see `attributes.learn`; or too many for a sentence of 77 tokens.
        """
        known, device = attributes.learn(self.config.fields, prior, people), self.project.weight.device
        sentence = prompt(TRACERS[0], 74.5, SEXES[0], **attributes.longest(known))
        if len(clip.tokeniser().encode(sentence)) + 2 > 77:  # with start and end of text
            raise ValueError(f"prior.fields: {', '.join(known)} together exceed CLIP's 77 tokens; name fewer fields")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = PriorModule(self.config, prompt_tokens(*attributes.words(known)))
        self.tower, self.frozen, self.vocabulary = fresh.tower, fresh.frozen, fresh.vocabulary
        self.known, self.catalogue = known, attributes.pack(known)
        self.clear_cache()
        self.to(device)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take the number of words of a stored module, before its weights are loaded."""
        self.catalogue.resize_(shapes.get("catalogue", (0,)))
        words = shapes.get("tower.token_embedding.weight", self.tower.token_embedding.weight.shape)
        self.tower.token_embedding = nn.Embedding(*words).requires_grad_(False)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.known = attributes.unpack(self.catalogue)
        words = prompt_tokens(*attributes.words(self.known)).to(self.project.weight.device)
        self.register_buffer("vocabulary", attributes.vocabulary(words), persistent=False)
