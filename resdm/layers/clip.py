"""CLIP's tokens and text tower, by open_clip."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:  # open_clip takes two seconds to import
    import open_clip
    from open_clip.transformer import TextTransformer

_VOCABULARY = 49408


@cache
def tokens(text: str) -> Tensor:
    """CLIP's byte-pair tokens (77,)."""
    with torch.device("cpu"):  # the cache is shared by all devices
        return tokeniser()([text])[0]


@cache
def end_of_text(text: str) -> int:
    """Index of the end-of-text token, where CLIP pools: the largest token id."""
    return int(tokens(text).argmax())


@cache
def tokeniser() -> open_clip.SimpleTokenizer:
    """CLIP's tokeniser; reading its vocabulary is slow."""
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


def text_tower(weights: str, known: Tensor, **size: int) -> TextTransformer:
    """A CLIP text tower with the embeddings of some tokens only; ViT-B/32's unless ``size`` is given.

    ``weights`` is ``"openai"`` (downloaded by open_clip), ``"none"`` (random), or the path of a CLIP state dictionary.
    ``known`` (N,) holds CLIP's ids of the tokens in use, about forty of 49,408; they become 0 … N − 1.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    # OpenAI's weights were trained with the quick GELU, so every tower has it.
    vit_b32 = {"width": 512, "heads": 8, "layers": 12, "output_dim": 512}
    tower = TextTransformer(vocab_size=len(known), **vit_b32 | size, act_layer=QuickGELU)
    if weights == "openai":
        import open_clip

        try:
            model = open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai")
        except RuntimeError as error:  # in several lines
            raise ConnectionError(
                f"CLIP's weights cannot be downloaded ({str(error).splitlines()[0]}); connect to the internet once, or "
                "name a file of these weights in prior.weights"
            ) from error
        _copy_text_part(tower, model.state_dict(), known, weights)
    elif weights != "none":
        _copy_text_part(tower, _read(weights), known, weights)
    return tower


def map_from_file(module: nn.Module) -> None:
    """Move a module's CPU weights to an unnamed temporary file and map it, which frees their memory."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.device.type == "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: weight.detach() for name, weight in weights.items()}, f"{folder}/weights.safetensors")
        with safe_open(f"{folder}/weights.safetensors", "pt") as file:
            for name, weight in weights.items():
                weight.data = file.get_tensor(name)


def known_rows(embedding: Tensor, known: Tensor) -> Tensor:
    """Rows of CLIP's complete token embedding for some tokens; any other embedding is returned unchanged."""
    return embedding[known] if len(embedding) == _VOCABULARY else embedding


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise FileNotFoundError(f"CLIP weights {file}: no such file; expected 'openai', 'none' or a weights file")
    import open_clip

    try:
        return open_clip.factory.load_state_dict(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"CLIP weights {file}: no state dictionary ({error}). OpenAI's ViT-B-32.pt is a TorchScript archive: "
            "use weights 'openai', or the .safetensors file of the same model"
        ) from error


def _copy_text_part(tower: TextTransformer, state: dict[str, Tensor], known: Tensor, source: str) -> None:
    """Copy the text part of a CLIP state dictionary, which has the tower's names."""
    target, embedding = tower.state_dict(), "token_embedding.weight"
    if embedding in state:
        state = state | {embedding: known_rows(state[embedding], known)}
    wrong = [name for name, value in target.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise ValueError(f"CLIP weights {source}: {len(wrong)} tensors missing or of another shape, as {wrong[0]!r}")
    tower.load_state_dict({name: state[name] for name in target})
