"""CLIP's tokens and text tower, by open_clip: the library's side of the prior module."""

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


@cache
def tokens(text: str) -> Tensor:
    """CLIP's byte-pair tokens (77,)."""
    with torch.device("cpu"):  # kept for everyone, whatever device the asker builds on
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
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


def text_tower(weights: str, words: Tensor, **size: int) -> TextTransformer:
    """A CLIP text tower that knows some of CLIP's tokens: ViT-B/32's unless ``size`` says otherwise.

    OpenAI's weights were trained with the quick GELU, so every tower here has it.

    Parameters
    ----------
    weights : str
        ``"openai"`` (downloaded by open_clip), ``"none"`` (drawn), or the path of a state dictionary with CLIP's names.
    words : Tensor (N,), int
        The tokens that will be asked for, as CLIP counts them; the tower counts them 0 … N − 1. ViT-B/32's embedding of
        all 49,408 is 96 MiB, of which prompts read some forty rows.
    **size : int
        ``width``, ``heads``, ``layers``, ``output_dim``.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, not a state dictionary, or one of another size: names the file and the remedy.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    vit_b32 = {"width": 512, "heads": 8, "layers": 12, "output_dim": 512}
    tower = TextTransformer(vocab_size=len(words), **vit_b32 | size, act_layer=QuickGELU)
    if weights == "openai":
        import open_clip

        model = open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai")
        _take(tower, model.state_dict(), words, weights)
    elif weights != "none":
        _take(tower, _read(weights), words, weights)
    return tower


def map_from_file(module: nn.Module) -> None:
    """Move a module's CPU weights to an unnamed temporary file and map it, so that they need no memory of their own."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.device.type == "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: weight.detach() for name, weight in weights.items()}, f"{folder}/weights.safetensors")
        with safe_open(f"{folder}/weights.safetensors", "pt") as file:
            for name, weight in weights.items():
                weight.data = file.get_tensor(name)


def known_rows(embedding: Tensor, words: Tensor) -> Tensor:
    """Rows of CLIP's whole token embedding for some tokens; an embedding that is no whole one is left as it is."""
    return embedding[words] if len(embedding) == _VOCABULARY else embedding


_VOCABULARY = 49408


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise FileNotFoundError(f"CLIP weights {file}: no such file; expected 'openai', 'none' or a weights file")
    import open_clip

    try:
        return open_clip.factory.load_state_dict(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"CLIP weights {file}: no state dictionary ({error}). OpenAI's own ViT-B-32.pt is a TorchScript archive: "
            "use weights 'openai', or the .safetensors file of the same model"
        ) from error


def _take(tower: TextTransformer, state: dict[str, Tensor], words: Tensor, source: str) -> None:
    """Copy the text part of a CLIP state dictionary; its names are the tower's own."""
    own, embedding = tower.state_dict(), "token_embedding.weight"
    if embedding in state:
        state = state | {embedding: known_rows(state[embedding], words)}
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise ValueError(f"CLIP weights {source}: {len(wrong)} tensors missing or of another shape, as {wrong[0]!r}")
    tower.load_state_dict({name: state[name] for name in own})
