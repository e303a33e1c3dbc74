"""Prompts, the text tower and its frozen, cached part."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from conftest import run, tiny_prior
from open_clip.transformer import QuickGELU, TextTransformer
from safetensors.torch import save_file
from torch import nn

from resdm.batch import Prior
from resdm.layers import clip
from resdm.pretraining import pretrain_text_tower
from resdm.prior import PriorConfig, PriorModule, TowerConfig, prompt, prompt_tokens, prompts

TEXTS = [prompt("amyloid", 74, "F"), prompt("tau", 61.5, "M"), prompt("tau", None, "M"), prompt("amyloid")]


def module(seed: int = 0, **changes) -> PriorModule:
    torch.manual_seed(seed)
    return PriorModule(tiny_prior(**changes))


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("amyloid", 74, "F"), "Synthesize an Aβ-PET scan for a 74.0-year-old female subject"),
    (("tau", 61.25, "M"), "Synthesize an Tau-PET scan for a 61.2-year-old male subject"),
    (("tau", None, "M"), "Synthesize an Tau-PET scan for a male subject"),
    (("amyloid", 80, None), "Synthesize an Aβ-PET scan for a 80.0-year-old subject"),
    (("amyloid",), "Synthesize an Aβ-PET scan for a subject"),
])  # fmt: skip
def test_prompts_are_the_released_sentences(arguments, sentence):
    assert prompt(*arguments) == sentence


@pytest.mark.parametrize(("arguments", "message"), [
    (("fdg",), "unknown tracer 'fdg'"), (("tau", 7, "M"), "age 7 is outside"), (("tau", 70, "X"), "unknown sex 'X'"),
])  # fmt: skip
def test_impossible_prompts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        prompt(*arguments)


def test_prompts_lie_person_by_person():
    texts = prompts(Prior((70.0, None), ("F", "M")))
    assert [("Tau" in text, "female" in text) for text in texts] == [(0, 1), (1, 1), (0, 0), (1, 0)]


def test_pooled_is_the_state_at_the_end_of_the_text():
    tokens, pooled = module(), module(context="pooled")
    pooled.load_state_dict(tokens.state_dict())
    states = tokens(TEXTS)
    assert states.shape == (4, 77, 256)
    assert pooled(TEXTS).shape == (4, 1, 256)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(pooled(TEXTS)[i, 0], states[i, clip.end_of_text(text)])


def test_equals_the_whole_tower_run_at_once():
    """The split into a frozen and a trainable part computes the same as open_clip's forward pass."""
    prior = module(context="pooled")
    tokens = prior.vocabulary[torch.stack([clip.tokens(text) for text in TEXTS])]
    prior.tower.pool_type = "none"
    states = prior.tower(tokens)  # every token's projected state
    expected = prior.project(torch.stack([states[i, clip.end_of_text(text)] for i, text in enumerate(TEXTS)]))
    torch.testing.assert_close(prior(TEXTS)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_cached_equals_uncached_bitwise_in_any_batch():
    prior = module()
    together, again = prior(TEXTS), prior(TEXTS)
    assert len(prior._cache) == 4
    assert torch.equal(together, again)
    assert torch.equal(together, prior(TEXTS, cached=False))
    other = module()
    other(TEXTS[2:])  # the cache fills in another order
    assert torch.equal(together, other(TEXTS))


def test_features_of_sentences_are_of_full_precision_whatever_was_cached_before():
    prior, fresh = module(), module()
    features = fresh.sentence_features(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        context = prior(TEXTS)
        assert torch.equal(prior.sentence_features(TEXTS), features)
        assert torch.equal(fresh(TEXTS), context)


def test_loading_weights_empties_the_cache():
    prior = module(0)
    before = prior(TEXTS)
    prior.load_state_dict(module(1).state_dict())
    after = prior(TEXTS)
    assert not torch.allclose(before, after)
    assert torch.equal(after, module(1)(TEXTS))


def test_gradients_reach_what_is_trained_and_nothing_else():
    prior = module()
    prior(TEXTS).square().sum().backward()
    for name, weight in prior.named_parameters():
        trained = "resblocks.1." in name or "ln_final" in name or "text_projection" in name or "project." in name
        assert weight.requires_grad == trained, name
        assert (weight.grad is not None and bool(weight.grad.any())) == trained, name


def test_released_size_of_the_trained_part():
    """About 3.55 M of ViT-B/32: block 11, ln_final, text_projection and the linear layer."""
    with torch.device("meta"):
        prior = PriorModule(PriorConfig(weights="none"))
    trained = sum(weight.numel() for weight in prior.parameters() if weight.requires_grad)
    assert trained == pytest.approx(3.55e6, rel=0.01)


@pytest.mark.parametrize("size", [None, TowerConfig(width=32, heads=2, layers=2, embed_dim=32)])
def test_the_vocabulary_knows_every_prompt(size):
    with torch.device("meta"):
        prior = PriorModule(PriorConfig(weights="none", tower=size))
    assert prior.tower.token_embedding.num_embeddings == len(prompt_tokens()) < 60
    for age in [None, *(18 + 0.1 * step for step in range(921))]:
        for sex in (None, "F", "M"):
            assert (prior.vocabulary[clip.tokens(prompt("tau", age, sex))] >= 0).all()


def test_frozen_weights_are_mapped_from_a_file():
    """The same values; weights loaded later are used, and a pickled copy is complete."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 64))
    before = layer[0].weight.clone()
    clip.map_from_file(layer)
    assert torch.equal(layer[0].weight, before)
    layer.load_state_dict({"0.weight": before + 1, "0.bias": layer[0].bias})
    assert torch.equal(pickle.loads(pickle.dumps(layer))[0].weight, before + 1)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of a process")
def test_mapped_weights_take_no_process_memory():
    """In a process of its own: another test may have told malloc to keep freed memory."""
    code = """
from pathlib import Path
from torch import nn
from resdm.layers import clip
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
layer = nn.Sequential(nn.Linear(4096, 4096))  # 64 MiB
memory = anonymous()
clip.map_from_file(layer)
print(memory - anonymous())
"""
    assert int(run("python", "-c", code).stdout) > 50 * 2**20


def test_fields_of_the_prompt_and_dropout():
    people = Prior((70.0,) * 400, ("F",) * 400)
    assert module(fields=()).mask_fields(people) == people.without("age", "sex")
    assert module(fields=("sex",)).mask_fields(people) == people.without("age")
    prior = module(dropout=0.25)
    assert prior.mask_fields(people) == people  # synthesis drops nothing
    masked = prior.mask_fields(people, torch.Generator().manual_seed(0))
    for values in (masked.age, masked.sex):
        assert sum(value is None for value in values) == pytest.approx(100, abs=30)
    assert any(a is None and s is not None for a, s in zip(masked.age, masked.sex, strict=True)), "dropped apart"
    assert masked == prior.mask_fields(people, torch.Generator().manual_seed(0))


def test_pretraining_lets_ages_be_recovered():
    torch.manual_seed(0)
    size = TowerConfig(width=32, heads=2, layers=2, embed_dim=32, pretraining_steps=300)
    prior = PriorModule(PriorConfig(weights="none", tower=size))
    assert pretrain_text_tower(prior, seed=0) > 0.9
    frozen = [name for name, weight in prior.named_parameters() if not weight.requires_grad]
    assert any("resblocks.0" in name for name in frozen), "the frozen part is frozen again"
    ages = torch.arange(50.0, 95.0, 0.5)
    with torch.no_grad():
        states = prior([prompt("tau", age, "F") for age in ages.tolist()])[:, clip.end_of_text(prompt("tau", 70, "F"))]
    states = torch.cat([states, torch.ones(len(ages), 1)], dim=1)
    weights = torch.linalg.lstsq(states[::2], ages[::2], driver="gelsd").solution
    correlation = torch.corrcoef(torch.stack([states[1::2] @ weights, ages[1::2]]))[0, 1]
    assert correlation > 0.9, "a linear map of the sentence's last state recovers ages outside its fit"


@pytest.mark.parametrize("pretraining_steps", [1, 2, 3])
def test_few_steps_of_pretraining_end_as_many_do(pretraining_steps):
    size = TowerConfig(width=16, heads=2, layers=2, embed_dim=16, pretraining_steps=pretraining_steps)
    assert -1 <= pretrain_text_tower(PriorModule(PriorConfig(weights="none", tower=size)), seed=0) <= 1


def test_pretrained_towers_are_cached_bit_for_bit(tmp_path, monkeypatch):
    """The cache serves the same first weights; another seed, number of steps or weights trains again."""

    def pretrained(weights: int, seed: int, steps: int = 5, folder: Path = tmp_path):
        torch.manual_seed(weights)
        prior = PriorModule(PriorConfig(weights="none", tower=TowerConfig(16, 2, 2, 16, pretraining_steps=steps)))
        return pretrain_text_tower(prior, seed, folder=folder), prior

    first, one = pretrained(0, 3)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("resdm.pretraining.draw_prompts", None)  # would be called
    again, other = pretrained(0, 3)
    assert again == first
    for (name, weight), expected in zip(other.named_parameters(), one.parameters(), strict=True):
        assert torch.equal(weight, expected), name
        assert weight.requires_grad == expected.requires_grad, name
    monkeypatch.undo()
    for count, arguments in enumerate(((1, 3), (0, 4), (0, 3, 6)), 2):
        pretrained(*arguments)
        assert len(list(tmp_path.iterdir())) == count
    assert pretrained(0, 3, folder=tmp_path / "elsewhere")[0] == first  # a function of weights and seed only


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_weights_file_in_clips_format_is_loaded(tmp_path, suffix):
    """A full ViT-B/32 text tower beside image weights that are not asked for, in half precision like OpenAI's."""
    torch.manual_seed(7)
    source = TextTransformer(vocab_size=49408, width=512, heads=8, layers=12, output_dim=512)
    state = {name: value.half() for name, value in source.state_dict().items()}
    state |= {"visual.conv1.weight": torch.zeros(4), "logit_scale": torch.tensor(4.6)}
    path = tmp_path / f"clip{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    state["token_embedding.weight"] = state["token_embedding.weight"][prompt_tokens()]  # what prompts can hold
    torch.manual_seed(8)
    loaded = PriorModule(PriorConfig(weights=str(path)))
    for name, value in loaded.tower.state_dict().items():
        assert torch.equal(value, state[name].float()), name
    assert isinstance(loaded.tower.transformer.resblocks[0].mlp.gelu, QuickGELU), "OpenAI trained with the quick GELU"


def test_bad_weights_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file"):
        PriorModule(PriorConfig(weights=str(tmp_path / "nowhere.pt")))
    other = tmp_path / "other.safetensors"
    save_file({"token_embedding.weight": torch.zeros(3, 4)}, other)
    with pytest.raises(ValueError, match=r"other\.safetensors: .* missing or of another shape"):
        PriorModule(PriorConfig(weights=str(other)))
    text = tmp_path / "text.pt"
    text.write_text("not weights")
    with pytest.raises(ValueError, match="no state dictionary"):
        PriorModule(PriorConfig(weights=str(text)))
