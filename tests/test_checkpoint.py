"""Model folders: written values are restored, and faults are named."""

from __future__ import annotations

import random
import shutil
from copy import deepcopy

import pytest
import torch
import yaml
from conftest import changed, random_batch, tiny_regression, tiny_resdm
from safetensors.torch import load_file, save_file
from tiny_methods import AdversarialConfig, PlainConfig, Sessions, build, collate, make_config, save_profile_model

from resdm.checkpoint import CheckpointError, differences, load_model, load_state, save_state, tensors
from resdm.io import sha256
from resdm.method import build_method
from resdm.prior import PriorConfig
from resdm.weights import read_weights, save_weights
from resdm_suite.apps import model_folder
from resdm_suite.apps.model_folder import check_model, load_card
from resdm_suite.profiles import GridConfig, load_config


@pytest.fixture
def saved(tmp_path):
    """A model folder of the plain method, its configuration and the method itself."""
    config = make_config(tmp_path)
    method = build(config, "Plain")
    return save_profile_model(tmp_path / "model", method, config, "Plain", step=7, epoch=2, score=41.5), config, method


def test_a_saved_model_is_restored(saved):
    folder, config, method = saved
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found, card = load_model(folder), load_card(folder)
    assert torch.equal(torch.get_rng_state(), state)
    batch = collate([Sessions()[0], Sessions()[1]])
    made = [m.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(3)) for m in (method.eval(), found)]
    assert torch.equal(*made)
    assert not found.training
    assert not any(weight.requires_grad for weight in found.parameters())
    assert (card.name, card.step, card.epoch, card.score) == ("Plain", 7, 2, 41.5)
    assert card.settings == config.method("Plain")
    assert card.digest == sha256(folder / "model.safetensors")
    assert card.config.preprocess == config.preprocess
    assert (card.config.seed, card.config.cohort.kind) == (config.seed, "other")


def test_config_yaml_is_a_profile_with_this_method_alone(saved):
    folder, config, _ = saved
    found = load_config(folder / "config.yaml")
    assert found == changed(config, methods={"Plain": config.method("Plain")})
    heading = (folder / "config.yaml").read_text().splitlines()[0]
    assert heading == "# Plain, trained by resdm: other data: not the paper's cohort"


def test_the_same_weights_give_the_same_bytes(saved, tmp_path):
    folder, config, method = saved
    again = save_profile_model(tmp_path / "again", method, config, "Plain", step=7, epoch=2, score=41.5)
    for file in ("model.safetensors", "config.yaml"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_given_weights_replace_those_of_the_method(saved, tmp_path):
    _, config, method = saved
    weights = {"prompt_weights": torch.tensor([3.0, 4.0])}
    found = load_model(save_profile_model(tmp_path / "other", method, config, "Plain", weights=weights))
    assert found.prompt_weights.tolist() == [3.0, 4.0]
    assert torch.equal(found.net[0].weight, method.net[0].weight)


def test_shared_weights_are_stored_once_and_stay_shared(saved):
    folder, _, method = saved
    assert "alias.weight" not in tensors(method)
    assert "net.3.weight" in load_file(folder / "model.safetensors")
    found = load_model(folder)
    assert found.alias.weight is found.net[3].weight
    assert torch.equal(found.alias.weight, method.alias.weight)


@pytest.mark.parametrize("make", [tiny_resdm, tiny_regression])
def test_the_papers_methods_are_restored(tmp_path, make):
    """A text tower's frozen part included, though its cache was filled with other states."""
    config = make_config(tmp_path, methods={"ResDM": make()})
    torch.manual_seed(0)
    method = build_method(config.method("ResDM"), (16, 16, 16)).eval()
    batch = random_batch(2, 16)
    expected = method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(1))
    found = load_model(save_profile_model(tmp_path / "model", method, config, "ResDM"))
    assert torch.equal(found.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(1)), expected)


def test_loading_fetches_no_pretrained_weights(tmp_path, monkeypatch):
    config = make_config(tmp_path, methods={"ResDM": tiny_resdm()})
    method = build_method(config.method("ResDM"), (16, 16, 16))
    folder = save_profile_model(tmp_path / "model", method, config, "ResDM")
    given = changed(tiny_resdm(), prior={"weights": "clip-that-is-not-here.safetensors"})
    method.config = given
    save_profile_model(folder, method, changed(config, methods={"ResDM": given}), "ResDM")
    found, card = load_model(folder), load_card(folder)
    assert found.config == card.settings == given
    assert isinstance(given.prior, PriorConfig)


# ── what does not fit ─────────────────────────────────────────────────────────────────────────────


def edited(**changes):
    """Other settings of the grid in ``config.yaml``."""

    def spoil(folder, config):
        tree = yaml.safe_load((folder / "config.yaml").read_text())
        tree["preprocess"]["grid"] |= changes
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))

    return spoil


def of_another_method(folder, config):
    other = save_profile_model(folder.with_name("other"), build(config, "GAN"), config, "GAN")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())


def with_other_tensors(folder, config):
    meta, values = read_weights(folder / "model.safetensors", "a model", "")
    values |= {"prompt_weights": torch.zeros(3), "extra": values.pop("net.0.bias")}
    save_weights(folder / "model.safetensors", values, meta)


UNFIT = {  # what is done to the folder, what reads it, and what the error says
    "no folder": (lambda folder, _: shutil.rmtree(folder), load_model, ["model: no such model folder; train the meth"]),
    "no weights": (lambda folder, _: (folder / "model.safetensors").unlink(), load_model,
                   ["no model.safetensors there; train the method first"]),
    "unfinished": (lambda folder, _: (folder / "model.safetensors").rename(folder / "state.pt"), load_model,
                   ["training is unfinished: run it again"]),
    "no configuration": (lambda folder, _: (folder / "config.yaml").unlink(), load_card,
                         ["no config.yaml there; train the method again"]),
    "no tensors": (lambda folder, _: (folder / "model.safetensors").write_bytes(b"\x08 not tensors"), load_model,
                   ["model.safetensors: not a model of resdm"]),
    "foreign tensors": (lambda folder, _: save_file({"x": torch.zeros(1)}, folder / "model.safetensors"), load_model,
                        ["not a model of resdm"]),
    "another method's weights": (of_another_method, load_card,
                                 ["the weights are of method 'GAN', config.yaml describes Plain"]),
    "another grid, though its tensors would fit": (edited(shape=[24, 24, 24]), load_card, [
        "preprocess.grid.shape: [16, 16, 16] in the weights, [24, 24, 24] in config.yaml"]),
    "keys and shapes": (with_other_tensors, load_model, [
        "prompt_weights: [3] in the file, [2] in the network", "net.0.bias: nothing in the file, [2] in the network",
        "extra: [2] in the file, nothing in the network", "delete it and train again"]),
    "unknown key": (edited(pasta=1), load_card, ["not a model of this version of resdm: ", "unknown key"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_folder_that_does_not_fit_is_named(saved, case):
    folder, config, _ = saved
    spoil, read, messages = UNFIT[case]
    spoil(folder, config)
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert all(message in str(error.value) for message in messages)
    if case == "no configuration":
        assert load_model(folder).shape == (16, 16, 16)  # the weights' file alone rebuilds the method


@pytest.mark.parametrize("seed", range(4))
def test_a_corrupted_model_file_is_named(saved, seed):
    """Cut files, foreign bytes, lost keys and values of other types: one error that names the file, or none."""
    folder, *_ = saved
    path, draw = folder / "model.safetensors", random.Random(seed)
    content, (meta, values) = path.read_bytes(), read_weights(path, "a model", "")
    for _ in range(60):
        tree = deepcopy(meta)
        part = draw.choice([tree, tree["method"]])
        key = draw.choice(list(part))
        damage = draw.choice(["cut", "flip", "bytes", "lost", "type"])
        at = draw.randrange(len(content))
        if damage == "cut":
            path.write_bytes(content[:at])
        elif damage == "flip":
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        elif damage == "bytes":
            path.write_bytes(draw.randbytes(draw.randrange(200)))
        else:
            part.pop(key) if damage == "lost" else part.update({key: draw.choice([None, -1, "x", [], {"a": 1}, [[]]])})
            save_weights(path, values, tree)
        try:
            load_model(folder)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert damage in ("lost", "type")


def test_settings_of_a_later_version_do_not_invalidate_a_model(saved, monkeypatch):
    folder, *_ = saved
    plain = model_folder.source_settings
    monkeypatch.setattr(model_folder, "source_settings", lambda config: plain(config) | {"preprocess.new": True})
    assert load_card(folder).name == "Plain"


def test_a_model_is_compared_with_the_profile(saved):
    folder, config, _ = saved
    card = load_card(folder)
    check_model(card, config, "Plain")
    check_model(card, changed(config, methods={"Plain": PlainConfig(sampling_steps=3)}), "Plain")  # changes no weight
    for other, message in (
        ({"methods": {"Plain": PlainConfig(width=5)}}, r"methods\.Plain\.width: 2 in the model, 5 in the profile"),
        ({"preprocess": {"grid": GridConfig((32,) * 3, 6.0)}}, r"grid\.voxel_mm: 12\.0 in the model, 6\.0 in the pro"),
        ({"methods": {"Plain": AdversarialConfig()}}, r"methods\.Plain\.kind: tiny_plain in the model, tiny_advers"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_model(card, changed(config, **other), "Plain")


# ── states ────────────────────────────────────────────────────────────────────────────────────────


def test_a_state_is_restored_and_contains_plain_values_only(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"fingerprint": {"seed": 1}, "x": torch.arange(3)})
    assert load_state(path, {"seed": 1})["x"].tolist() == [0, 1, 2]
    torch.save({"fingerprint": {"seed": 1}, "x": PlainConfig()}, path)  # a pickled object could run code
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(path, {"seed": 1})


def test_a_flipped_bit_of_a_state_is_found(tmp_path):
    path, draw = tmp_path / "state.pt", random.Random(0)
    save_state(path, {"fingerprint": {}, "x": torch.randn(500)})
    content = path.read_bytes()
    start = content.index(load_state(path, {})["x"].numpy().tobytes())
    for at in (start + draw.randrange(2000) for _ in range(20)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=r"state\.pt: not a training state"):
            load_state(path, {})


def test_a_failed_save_leaves_the_state_before(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"fingerprint": {}, "x": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(path, {"fingerprint": {}, "x": lambda: None})
    assert load_state(path, {})["x"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_differences_go_down_to_the_leaf():
    one, other = {"a": {"b": 1, "c": (1, 2)}, "d": 1}, {"a": {"b": 2, "c": [1, 2]}, "e": {"f": 3}}
    assert differences(one, other) == [("a.b", 1, 2), ("d", 1, "nothing"), ("e", "nothing", {"f": 3})]
