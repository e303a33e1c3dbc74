"""CLIP's tokens and text tower, by open_clip: the library's side of the prior module."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import open_clip
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor


@cache
def tokens(text: str) -> Tensor:
    """CLIP's byte-pair tokens (77,)."""
    return _tokeniser()([text])[0]


@cache
def end_of_text(text: str) -> int:
    """Index of the end-of-text token, where CLIP pools: the largest token id."""
    return int(tokens(text).argmax())


def spell(text: str) -> list[str]:
    """The 77 tokens as words and word parts; padding is empty."""
    end = end_of_text(text)
    words = [_tokeniser().decode([token]).strip() for token in tokens(text)[1:end].tolist()]
    return ["<start>", *words, "<end>", *[""] * (len(tokens(text)) - end - 1)]


@cache
def _tokeniser() -> open_clip.SimpleTokenizer:
    """CLIP's own; its vocabulary is packaged with open_clip, and takes a while to read."""
    return open_clip.get_tokenizer("ViT-B-32")


def text_tower(weights: str, **size: int) -> TextTransformer:
    """A CLIP text tower: ViT-B/32's unless ``size`` says otherwise.

    OpenAI's weights were trained with the quick GELU, so every tower here has it.

    Parameters
    ----------
    weights : str
        ``"openai"`` (downloaded by open_clip), ``"none"`` (drawn), or the path of a state dictionary with CLIP's names.
    **size : int
        ``vocab_size``, ``width``, ``heads``, ``layers``, ``output_dim``.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, not a state dictionary, or one of another size: names the file and the remedy.
    """
    vit_b32 = {"vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "output_dim": 512}
    tower = TextTransformer(**vit_b32 | size, act_layer=QuickGELU)
    if weights == "openai":
        model = open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai")
        _take(tower, model.state_dict(), weights)
    elif weights != "none":
        _take(tower, _read(weights), weights)
    return tower


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise FileNotFoundError(f"CLIP weights {file}: no such file; expected 'openai', 'none' or a weights file")
    try:
        return open_clip.factory.load_state_dict(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"CLIP weights {file}: no state dictionary ({error}). OpenAI's own ViT-B-32.pt is a TorchScript archive: "
            "use weights 'openai', or the .safetensors file of the same model"
        ) from error


def _take(tower: TextTransformer, state: dict[str, Tensor], source: str) -> None:
    """Copy the text part of a CLIP state dictionary; its names are the tower's own."""
    own = tower.state_dict()
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise ValueError(f"CLIP weights {source}: {len(wrong)} tensors missing or of another shape, as {wrong[0]!r}")
    tower.load_state_dict({name: state[name] for name in own})
