"""Training: closed forms, exact resume, checks, several processes."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, tiny_network, tiny_prior, tiny_regression, tiny_resdm
from conftest import run as run_program
from safetensors.torch import load_file
from tiny_baselines import TINY
from tiny_methods import AdversarialConfig, PlainConfig, Sessions, build, collate, make_config, train, with_method

from resdm import training
from resdm.checkpoint import CheckpointError, load_model, tensors
from resdm.io import sha256
from resdm.loop import decay_factor
from resdm.training import TrainingDiverged, epoch_batches
from resdm_suite.apps.model_folder import load_card


def run(config, name="Plain", *, method=None, n=7, validation=3, **options):
    """Train a tiny method under an arbitrary global random state."""
    method = build(config, name) if method is None else method
    torch.manual_seed(random.randrange(10**6))
    validation_set = Sessions(validation, seed=1) if validation else None
    sets = Sessions(n, augment=True), validation_set
    return train(method, config, name, *sets, collate=collate, progress=False, **options)


def digests(folder):
    return {file: sha256(folder / file) for file in ("model.safetensors", "history.csv", "config.yaml")}


class Stopped(Exception):
    pass


def observe(method, before_step=lambda: None, before=lambda loss: None, after=lambda: None):
    """Call functions before each step, and before and after each optimiser's update."""
    losses = method.losses

    def observed(batch, generator):
        before_step()
        for key, loss in losses(batch, generator):
            before(loss)
            yield key, loss
            after()

    method.losses = observed
    return method


def stop(config, step, name="Plain", **options):
    """Train until a step (from 0), as if the process died there."""
    calls = iter(range(10**6))

    def die():
        if next(calls) == step:
            raise Stopped

    with pytest.raises(Stopped):
        run(config, name, method=observe(build(config, name), before_step=die), **options)


IMPORTS = "import sys; from pathlib import Path\nfrom conftest import *; from tiny_methods import *\n"


# ── closed forms ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("none", [1, 1, 1, 1]), ("cosine", [1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)]),
     ("linear_half", [1, 1, 1, 0.5])],
)  # fmt: skip
def test_learning_rate_factors_in_closed_form(decay, expected):
    assert [decay_factor(decay, step, 4) for step in range(4)] == pytest.approx(expected)


def test_average_starts_after_the_warmup_and_is_what_is_saved(tmp_path):
    """EMA of the stored weights against the same sum over every step's weights, two copies first."""
    config, seen = make_config(tmp_path, epochs=2), []
    method = build(config, "Plain")
    observe(method, after=lambda: seen.append(method.net[0].weight.detach().clone()))
    folder = run(config, method=method, validation=0)
    average = seen[1]  # ema_warmup 2: copies of steps 0 and 1
    for weight in seen[2:]:
        average = 0.9 * average + 0.1 * weight
    assert len(seen) == 6
    saved = load_file(folder / "model.safetensors")
    torch.testing.assert_close(saved["net.0.weight"], average)
    assert not torch.allclose(saved["net.0.weight"], seen[-1])
    assert "alias.weight" not in saved  # shared tensors once
    assert "frozen.weight" in saved


@pytest.mark.parametrize(("decay", "clip_norm", "gradient", "moved"), [
    ("linear_half", None, (1, 1), (-5.0, -5.0)), ("none", 0.25, (30, 40), (-0.15 * 6, -0.2 * 6)),
])  # fmt: skip
def test_plain_descent_moves_by_the_factors_and_the_clipped_gradient(tmp_path, decay, clip_norm, gradient, moved):
    """Six steps at rate 1: factors of 1, 1, 1, 1, 2/3, 1/3, which sum to 5; or six gradients of norm 0.25."""
    config = make_config(tmp_path, epochs=2, clip_norm=clip_norm)
    method = build(with_method(config, "Plain", decay=decay, ema=0.0), "Plain")
    method.optimisers = lambda: {"model": torch.optim.SGD([method.prompt_weights], lr=1.0)}
    method.losses = lambda *_: iter([("model", (method.prompt_weights * torch.tensor(gradient)).sum())])
    run(with_method(config, "Plain", decay=decay, ema=0.0), method=method, validation=0)
    torch.testing.assert_close(method.prompt_weights.detach(), torch.tensor(moved))


def test_batches_hold_everyone_once_and_depend_on_epoch_and_seed():
    batches = epoch_batches(12, 4, seed=3, epoch=0)
    assert sorted(itertools.chain(*batches)) == list(range(12))
    assert epoch_batches(12, 4, seed=3, epoch=0) == batches
    assert epoch_batches(12, 4, seed=3, epoch=1) != batches != epoch_batches(12, 4, seed=4, epoch=0)
    assert [len(batch) for batch in epoch_batches(11, 4, 0, 0)] == [4, 4]  # every step alike
    assert [len(batch) for batch in epoch_batches(3, 4, 0, 0)] == [3]


def test_gradients_of_one_phase_do_not_leak_into_the_next(tmp_path):
    """The generator's backward pass fills the discriminator's gradients too; its step must not use them."""
    config = with_method(make_config(tmp_path, epochs=1), "GAN", decay="none")
    method, by_loop = build(config, "GAN"), build(config, "GAN")
    for module in (method, by_loop):
        module.generator[1].p = 0.0
    run(config, "GAN", method=method, validation=0)
    optimisers, data = by_loop.optimisers(), Sessions(7, augment=True)
    for batch in epoch_batches(7, 2, config.seed, 0):
        for key, loss in by_loop.losses(collate([data[i] for i in batch]), None):
            weights = list(getattr(by_loop, key).parameters())
            for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = grad
            optimisers[key].step()
    for name, value in tensors(method).items():
        torch.testing.assert_close(value, tensors(by_loop)[name], msg=name)


# ── what is written ───────────────────────────────────────────────────────────────────────────────


def test_files_of_a_training(tmp_path):
    """Losses are the means over an epoch's steps."""
    config, seen = make_config(tmp_path), []
    method = build(config, "Plain")
    observe(method, before=lambda loss: seen.append((float(loss.detach()), float(method.scalars["amyloid"]))))
    folder = run(config, method=method)
    assert folder == tmp_path / "work" / "tiny" / "models" / "Plain"
    assert {file.name for file in folder.iterdir()} == {
        "config.yaml", "history.csv", "model.safetensors", "state.pt", "timing.json",
    }  # fmt: skip
    history = pd.read_csv(folder / "history.csv")
    assert history[["epoch", "step"]].to_numpy().tolist() == [[1, 3], [2, 6], [3, 9]]
    means = np.reshape(seen, (3, 3, 2)).mean(1)
    np.testing.assert_allclose(history[["loss_model", "amyloid"]], means, rtol=1e-5)
    assert means[-1, 0] < means[0, 0]
    assert history["validation"].isna().tolist() == [True, False, False]  # every second epoch and the last
    last = history.iloc[-1]
    assert last["validation"] == pytest.approx(last["validation_amyloid"] + last["validation_tau"])
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["steps"] == 9
    assert timing["parameters"] - timing["trainable_parameters"] == 2  # the frozen layer
    assert timing["seconds"] > 0
    assert timing["peak_memory_bytes"] > 10**7


def test_validation_uses_averaged_weights_and_only_present_tracers(tmp_path):
    config, calls = make_config(tmp_path, epochs=2), []

    def score(real, synthetic):
        calls.append((real, synthetic))
        return 1.0 + len(calls)

    folder = run(config, score=score)
    assert len(calls) == 5  # people 0 … 2, of whom 0 has no tau
    history = pd.read_csv(folder / "history.csv")
    assert history["validation_amyloid"].iloc[-1] == pytest.approx(np.mean([2, 3, 5]))
    assert history["validation_tau"].iloc[-1] == pytest.approx(np.mean([4, 6]))
    method, card = load_model(folder), load_card(folder)
    method.adapt(config.training, torch.device("cpu"))
    assert card.score == pytest.approx(history["validation"].iloc[-1])
    people = Sessions(3, seed=1)
    generator = torch.Generator().manual_seed(training.derive_seed(config.seed, "validation", 0))
    batch = collate([people[0], people[1]])
    synthetic = method.synthesise(batch.mri, batch.prior, generator)
    np.testing.assert_array_equal(calls[0][1], synthetic[0, 0].numpy())  # the stored weights are those validated


def test_best_weights_are_kept(tmp_path):
    config, saved = with_method(make_config(tmp_path, epochs=4, validate_every=1), "Plain", ema=0.0), []
    scores = iter([1.0] * 5 + [9.0] * 5 + [2.0] * 5 + [3.0] * 5)
    method = build(config, "Plain")
    observe(method, after=lambda: saved.append(method.net[0].bias.detach().clone()))
    folder = run(config, method=method, score=lambda real, synthetic: next(scores))
    card = load_card(folder)
    assert (card.epoch, card.step, card.score) == (2, 6, 18.0)
    assert torch.equal(load_file(folder / "model.safetensors")["net.0.bias"], saved[5])
    assert not torch.equal(saved[5], saved[-1])


class WithoutPET(Sessions):
    def __getitem__(self, i):
        mri, pet, present, *who = super().__getitem__(i)
        return mri, pet, present & False, *who


def test_people_without_a_pet_validate_nothing(tmp_path):
    """The last weights are kept, as without validation people."""
    config = make_config(tmp_path, validate_every=1)
    folder = train(build(config, "Plain"), config, "Plain", Sessions(7), WithoutPET(3), collate=collate, progress=False)
    assert (load_card(folder).step, load_card(folder).score) == (9, None)
    assert "validation" not in pd.read_csv(folder / "history.csv")


def test_validation_does_not_change_training(tmp_path):
    """The same weights at the end, whether people are validated each epoch or not at all."""
    config = make_config(tmp_path, validate_every=1)
    one, other = build(config, "Plain"), build(config, "Plain")
    run(config, method=one, folder=tmp_path / "one")
    run(config, method=other, folder=tmp_path / "other", validation=0)
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


# ── resume ────────────────────────────────────────────────────────────────────────────────────────


def papers(make):
    prior = tiny_prior(dropout=0.3)
    prior = replace(prior, tower=replace(prior.tower, pretraining_steps=8))
    return make(prior=prior, network=tiny_network(dropout=0.1), ema=0.5, ema_warmup=1, learning_rate=1e-3)


METHODS = {"ResDM": papers(tiny_resdm), "regression": papers(tiny_regression)} | TINY
TWO = {"Plain": PlainConfig(), "GAN": AdversarialConfig()}


@pytest.mark.parametrize(("name", "step"), [("Plain", 1), ("Plain", 3), ("GAN", 5), *((name, 4) for name in METHODS)])
def test_resume_is_exact_to_the_byte(tmp_path, name, step):
    """Noise, prompt dropout, pretraining, caches, two models or optimisers, spectral norm, masks drawn at random."""
    config = make_config(tmp_path, methods={name: (TWO | METHODS)[name]}, epochs=2, validate_every=1)
    folder = tmp_path / "cut"
    expected = digests(run(config, name, folder=tmp_path / "whole"))
    stop(config, step, name, folder=folder)
    assert not (folder / "model.safetensors").exists()
    first = None if step < 2 else build(replace(config, seed=9), name)  # overwritten by what was stored
    run(config, name, method=first, folder=folder)
    assert digests(folder) == expected
    method, saved = load_model(folder), load_file(folder / "model.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in tensors(method).items())
    assert load_card(folder).settings == config.method(name)
    if name == "ResDM":
        history = pd.read_csv(folder / "history.csv")
        assert list(history.columns)[:5] == ["epoch", "step", "loss_model", "rec", "high"]


def test_settings_of_the_machine_may_change_and_change_no_byte(tmp_path):
    config = make_config(tmp_path)
    expected = run(config, folder=tmp_path / "whole")
    stop(config, 5)
    folder = run(replace(config, training=replace(config.training, checkpoint_every=100, workers=1)))
    for file in ("model.safetensors", "history.csv"):
        assert sha256(folder / file) == sha256(expected / file)


def test_a_finished_training_returns_at_once_unless_its_model_was_deleted(tmp_path):
    """Snakemake deletes a rule's outputs when something that they depend on has changed: no old result may return."""
    config = make_config(tmp_path)
    folder = run(config)
    results = [file for file in folder.iterdir() if file.name != "state.pt"]
    expected, before = digests(folder), {file: file.stat().st_mtime_ns for file in results}
    run(config)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    for file in folder.iterdir():
        file.unlink()
    stop(config, 0)
    assert digests(run(config)) == expected


def test_a_job_that_fails_after_the_last_step_loses_nothing(tmp_path):
    """Snakemake deletes the results of a failed job; the state is none of them."""
    config = make_config(tmp_path)
    folder = run(config)
    expected = digests(folder)
    for name in ("model.safetensors", "history.csv"):
        (folder / name).unlink()
    method = observe(build(config, "Plain"), before_step=lambda: pytest.fail("a step was repeated"))
    assert digests(run(config, method=method)) == expected


CHANGES = [
    (lambda c: with_method(c, "Plain", learning_rate=0.5), "methods.Plain.learning_rate: 0.01 in the {}, 0.5 now"),
    (lambda c: with_method(c, "Plain", width=3), "methods.Plain.width: 2 in the {}, 3 now"),
    (lambda c: replace(c, seed=5), "seed: 0 in the {}, 5 now"),
    (lambda c: replace(c, training=replace(c.training, batch_size=3)), "training.batch_size: 2 in the {}, 3 now"),
    (lambda c: replace(c, training=replace(c.training, epochs=9)), "training.epochs: 3 in the {}, 9 now"),
    (lambda c: replace(c, preprocess=replace(c.preprocess, mask=False)), "preprocess.mask: True in the {}, False now"),
]


@pytest.mark.parametrize(("step", "file"), [(None, "model.safetensors"), (5, "state.pt")])
def test_another_configuration_is_refused_by_name_and_nothing_lost(tmp_path, step, file):
    config = make_config(tmp_path)
    stop(config, step) if step else run(config)
    before = {path.name: sha256(path) for path in config.model("Plain").iterdir()}
    assert file in before
    message = f"(?s)another configuration.*another work folder.*or delete {file} to"
    for change, named in CHANGES:
        with pytest.raises(CheckpointError, match=message) as e:
            run(change(config))
        assert named.format(file.split(".")[0]) in str(e.value)
    with pytest.raises(CheckpointError, match=r"data\.train: 7 in the \w+, 8 now"):
        run(config, n=8)
    assert {path.name: sha256(path) for path in config.model("Plain").iterdir()} == before


def test_an_unusable_state_is_named(tmp_path):
    """Of another version of the network, cut, or of another format."""
    config, state = make_config(tmp_path), tmp_path / "work/tiny/models/Plain/state.pt"
    stop(config, 5)
    method = build(config, "Plain")
    method.more = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"state\.pt: the state of another version of 'Plain' .*more\.weight"):
        run(config, method=method)
    content, values = state.read_bytes(), torch.load(state, weights_only=True)
    for damaged in (content[:-100], content[: len(content) // 2], b"", b"PK half a file"):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"not a training state.*delete it to start again"):
            run(config)
    for lost in ("weights", "random", "log"):
        torch.save(values | {lost: None}, state)
        with pytest.raises(CheckpointError, match=r"state\.pt: the state of another version"):
            run(config)


# ── guards ────────────────────────────────────────────────────────────────────────────────────────


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    config = with_method(make_config(tmp_path, checkpoint_every=2), "GAN", poison=6)
    message = r"(?s)GAN.*optimiser 'generator' is not finite at step 6.*state\.pt.*learning_rate"
    with pytest.raises(TrainingDiverged, match=message):
        run(config, "GAN")
    folder = config.model("GAN")
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["weights"].values())
    assert not (folder / "model.safetensors").exists()
    assert pd.read_csv(folder / "history.csv")["epoch"].tolist() == [1]
    method = build(config, "GAN")
    method.steps = 100  # from the good state, without the fault, training ends as if there had been none
    run(config, "GAN", method=method)
    expected = run(with_method(config, "GAN", poison=0), "GAN", folder=tmp_path / "whole")
    assert digests(folder)["history.csv"] == digests(expected)["history.csv"]


def test_a_weight_that_is_not_finite_is_found_before_it_is_stored(tmp_path):
    """A finite loss with an infinite gradient: sqrt at 0."""
    config = make_config(tmp_path, checkpoint_every=1)
    method = build(config, "Plain")
    method.losses = lambda batch, generator: iter([("model", (method.prompt_weights.square().sum() * 0).sqrt())])
    with pytest.raises(TrainingDiverged, match=r"a weight is not finite after step 1.*no state was stored yet"):
        run(config, method=method)
    assert not (config.model("Plain") / "state.pt").exists()


@pytest.mark.parametrize(("n", "settings", "message"), [
    (0, {}, "nobody to train on"), (7, {"batch_size": 3, "devices": 2}, r"multiple of training\.devices"),
])  # fmt: skip
def test_impossible_batches_are_refused(tmp_path, n, settings, message):
    with pytest.raises(ValueError, match=message):
        run(make_config(tmp_path, **settings), n=n)


def test_a_loss_of_no_optimiser_is_named(tmp_path):
    method = build(config := make_config(tmp_path), "Plain")
    method.losses = lambda batch, generator: iter([("generator", method.prompt_weights.sum())])
    with pytest.raises(ValueError, match="losses yields 'generator'; expected an optimiser: model"):
        run(config, method=method)


# ── budget, precision, processes ──────────────────────────────────────────────────────────────────


def test_equal_time_fixes_the_steps_once(tmp_path):
    config = make_config(tmp_path, budget="equal_time", seconds=1.6, epochs=1, checkpoint_every=1)
    config = with_method(config, "GAN", pause=0.03)
    stop(config, 8 + 2, "GAN")  # eight steps are timed and undone
    folder = config.model("GAN")
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert 3 <= state["total"] <= 53
    run(config, "GAN")
    assert json.loads((folder / "timing.json").read_text())["steps"] == state["total"]
    assert pd.read_csv(folder / "history.csv")["step"].iloc[-1] == state["total"]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    run(config, "GAN")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_timing_steps_changes_no_weight(tmp_path, monkeypatch):
    """With as many steps as epochs give, equal_time trains the same weights as equal_epochs."""
    config = make_config(tmp_path)
    monkeypatch.setattr(training.np, "median", lambda times: 1.0)
    timed = replace(config, training=replace(config.training, budget="equal_time", seconds=9.0))
    one = load_file(run(config, "GAN", folder=tmp_path / "one") / "model.safetensors")
    two = load_file(run(timed, "GAN", folder=tmp_path / "two") / "model.safetensors")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_method_may_set_its_precision(tmp_path):
    config = with_method(make_config(tmp_path, epochs=1), "Plain", precision="bf16-mixed", ema=0.0)
    method, types = build(config, "Plain"), []
    method.net[0].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    folder = run(config, method=method)
    assert set(types) == {torch.bfloat16}
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} <= {torch.float32, torch.int64}
    assert json.loads((folder / "timing.json").read_text())["precision"] == "bf16-mixed"


TWO_PROCESSES = """
class Complete(Sessions):  # with missing PETs, processes average means of unequal numbers of people
    def __getitem__(self, i):
        mri, pet, present, *who = super().__getitem__(i)
        return mri, pet, present | True, *who

def run_all(root, devices):
    settings = tiny_resdm(prior=tiny_prior(dropout=0.3), start_share=0.5, ema_warmup=0, learning_rate=1e-3)
    methods = {'GAN': AdversarialConfig(decay='none'), 'Two': PerTracerConfig(), 'ResDM': settings}
    config = make_config(root, methods=methods, batch_size=4, devices=devices, validate_every=1, checkpoint_every=3)
    pair = replace(config, training=replace(config.training, batch_size=2, epochs=4))
    gan = build(config, 'GAN')
    gan.generator[1].p = 0.0
    for name, method, config, data in (
        ('GAN', gan, config, (Sessions(8), Sessions(5, seed=1))),
        ('Two', build(pair, 'Two'), pair, (Sessions(2),)),  # one process sees person 0 only, who has no tau PET
        ('ResDM', build(config, 'ResDM'), config, (Complete(8, augment=True), Complete(4, seed=1))),
    ):
        train(method, config, name, *data, collate=collate, folder=root / name, progress=False)
"""


def test_two_processes_train_as_one_with_the_same_batch(tmp_path):
    """Gradients averaged over two processes (gloo) are those of the whole batch, for which all is drawn."""
    script = tmp_path / "two.py"
    script.write_text(f"{IMPORTS}{TWO_PROCESSES}\nrun_all(Path({str(tmp_path / 'two')!r}), 2)")
    run_program("python", script, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    names = {}
    exec(IMPORTS + TWO_PROCESSES, names)
    names["run_all"](tmp_path / "one", 1)
    for method, tolerance in (("GAN", 1e-4), ("Two", 1e-4), ("ResDM", 1e-3)):
        one, two = (tmp_path / folder / method for folder in ("one", "two"))
        weights, other = (load_file(folder / "model.safetensors") for folder in (one, two))
        for key in weights:
            torch.testing.assert_close(other[key], weights[key], msg=key, rtol=tolerance, atol=tolerance / 100)
        if method != "Two":
            pd.testing.assert_frame_equal(*(pd.read_csv(f / "history.csv") for f in (one, two)), rtol=1e-4)
