"""What holds for each of the five baselines: size, gradients, shapes, phases of training, missing tracers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_batch, tiny_resdm
from tiny_baselines import PHASES, SHAPE, TINY, count, fit, make, seeded, smooth_batch

from resdm import method as base
from resdm.batch import Batch
from resdm.method import build_method
from resdm.settings import TrainingConfig, settings_class

BASELINES = [kind for kind in TINY if kind != "released"]
ADVERSARIAL = [kind for kind in BASELINES if kind != "ddpm"]


@pytest.mark.parametrize(("kind", "part", "millions"), [
    ("pix2pix", "models.amyloid.generator", 41.8), ("pix2pix", "models.tau.discriminator", 2.8),
    ("scgan", "models.amyloid.generator", 30.4), ("transunet", "models.tau.generator", 38.2),
    ("resvit", "generator", 19.4), ("ddpm", "unet", 28.8),
])  # fmt: skip
def test_parameters_at_the_default_widths_on_the_papers_grid(kind, part, millions):
    with torch.device("meta"):
        method = build_method(settings_class(kind)(), (128, 128, 128))
    assert count(method.get_submodule(part)) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("kind", BASELINES)
def test_every_weight_gets_a_gradient(kind):
    """By the third step; SC-GAN's σ and DDPM's last convolutions start at 0, and block those before them at first."""
    method = make(kind, (24, 24, 24), **({"l2_weight": 0.0} if kind == "scgan" else {}))  # L2 would reach every weight
    assert all(weight.requires_grad for weight in method.parameters())
    for steps in (1, 2):
        fit(method, smooth_batch(2, (24, 24, 24)), steps)
        dead = {name for name, weight in method.named_parameters() if weight.grad is None or not weight.grad.any()}
        if steps == 1 and kind == "scgan":
            assert dead
            assert all("attention." in name and not name.endswith("sigma") for name in dead)
        elif steps == 1 and kind == "ddpm":
            alive = {name for name, _ in method.named_parameters()} - dead
            assert alive == {"unet.out.2.conv.weight", "unet.out.2.conv.bias"}
        else:
            assert dead == set()


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 40, 24), (17, 23, 19)])
@pytest.mark.parametrize("kind", BASELINES)
def test_shape_and_range(kind, shape):
    method = make(kind, shape)
    batch = random_batch(2, shape)
    fit(method, batch, 1)
    pet = method.eval().synthesise(batch.mri, batch.prior, seeded())
    assert pet.shape == (2, 2, *shape)
    assert pet.dtype == torch.float32
    assert not pet.requires_grad
    assert 0 <= float(pet.min()) < float(pet.max()) <= 1


@pytest.mark.parametrize("kind", TINY)
def test_half_precision_ends_before_the_output(kind):
    """A PET in bfloat16 would have steps of 0.4 % of its range."""
    method, batch = make(kind), smooth_batch()
    with torch.autocast("cpu", torch.bfloat16):
        for name, loss in method.losses(batch, seeded()):
            assert loss.dtype == torch.float32
            assert loss.isfinite(), name
        assert method.eval().synthesise(batch.mri, batch.prior, seeded()).dtype == torch.float32


@pytest.mark.parametrize("kind", BASELINES)
def test_each_phase_trains_one_network(kind):
    """Phases have the original's order; each reaches every weight of its network and no other."""
    method, batch = make(kind), smooth_batch()
    optimisers, phases = method.optimisers(), []
    for name, loss in method.losses(batch, seeded()):
        before = {key: weight.detach().clone() for key, weight in method.named_parameters()}
        for weight in method.parameters():
            weight.grad = None
        loss.backward()
        reached = {key for key, weight in method.named_parameters() if weight.grad is not None}
        optimisers[name].step()
        moved = {key for key, weight in method.named_parameters() if not torch.equal(weight, before[key])}
        prefix = {"ddpm": "unet.", "resvit": f"{name}."}.get(kind, f"models.{name}.")
        assert reached == {key for key in before if key.startswith(prefix)}
        assert set() < moved <= reached
        phases.append(name)
    assert phases == PHASES[kind] == list(optimisers)
    assert all(weight.requires_grad for weight in method.parameters())  # nothing stays frozen


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("own_rate", [None, 7e-4])
def test_optimisers_have_the_original_settings(kind, own_rate):
    rate = 1e-3 if kind == "scgan" else 2e-4
    method = make(kind, weight_decay=0.1, discriminator_learning_rate=own_rate)
    for name, optimiser in method.optimisers().items():
        (group,) = optimiser.param_groups
        expected = (own_rate or rate) if "discriminator" in name else rate
        assert isinstance(optimiser, torch.optim.Adam)
        assert (group["lr"], group["betas"], group["weight_decay"]) == (expected, (0.5, 0.999), 0.1)
    assert settings_class(kind)().decay == ("none" if kind == "scgan" else "linear_half")
    assert settings_class(kind)().weight_decay == 0


@pytest.mark.parametrize("kind", BASELINES)
def test_a_batch_without_pet_has_no_loss(kind):
    batch = replace(random_batch(2, SHAPE), present=torch.zeros((2, 2), dtype=torch.bool))
    method = make(kind)
    fit(method, random_batch(2, SHAPE), 1)
    assert list(method.losses(batch, seeded())) == []
    assert method.scalars == {}


@pytest.mark.parametrize("kind", BASELINES)
def test_a_missing_pet_has_no_effect(kind):
    """Its voxels are ignored; with one model per tracer, the model of an absent tracer takes no step."""
    batch = random_batch(2, SHAPE)
    present = torch.tensor([[True, False], [True, False]])
    other = replace(batch, present=present, pet=torch.cat([batch.pet[:, :1], 0.3 * batch.pet[:, 1:]], 1))
    batch = replace(batch, present=present)
    results = []
    for data in (batch, other):
        method = make(kind)
        results.append((fit(method, data, 2), {k: w.detach() for k, w in method.named_parameters()}))
    (losses, weights), (other_losses, other_weights) = results
    assert losses == other_losses
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert list(losses) == [name for name in PHASES[kind] if not name.startswith("tau")]
    untouched = dict(make(kind).named_parameters())
    tau = [key for key in weights if key.startswith("models.tau")]
    assert all(torch.equal(weights[key], untouched[key]) for key in tau)


@pytest.mark.parametrize("kind", ["pix2pix", "scgan", "transunet"])
def test_each_tracer_is_trained_on_the_people_who_have_it(kind):
    batch = replace(random_batch(3, SHAPE), present=torch.tensor([[True, False], [True, True], [False, True]]))
    alone = {
        "amyloid": Batch(batch.mri[:2], batch.pet[:2], batch.present[:2], batch.prior),
        "tau": Batch(batch.mri[1:], batch.pet[1:], batch.present[1:], batch.prior),
    }
    for channel, (tracer, part) in enumerate(alone.items()):
        model = make(kind, dropout=0.0).models[tracer]
        _, expected = next(model.losses(part.mri, part.pet[:, channel : channel + 1], seeded()))
        losses = make(kind, dropout=0.0).losses(batch, seeded())
        torch.testing.assert_close(next(loss for name, loss in losses if name.startswith(tracer)), expected)


@pytest.mark.parametrize("kind", BASELINES)
def test_results_depend_on_seeds_only(kind):
    batch = smooth_batch()

    def outcome(seed, draws):
        method = make(kind, seed=seed)
        losses = fit(method, batch, 2, seed=draws)
        return losses, method.eval().synthesise(batch.mri, batch.prior, seeded(5))

    losses, pet = outcome(0, 0)
    again, same = outcome(0, 0)
    assert losses == again
    assert torch.equal(pet, same)
    other_noise = make(kind).eval().synthesise(batch.mri, batch.prior, seeded(6))
    same_noise = make(kind).eval().synthesise(batch.mri, batch.prior, seeded(5))
    assert torch.equal(other_noise, same_noise) == (kind != "ddpm")
    assert not torch.equal(pet, outcome(1, 0)[1])
    # Only what draws from the generator depends on it: ResViT's availability, DDPM's noise.
    assert (outcome(0, 7)[0] == losses) == (kind not in ("resvit", "ddpm"))


@pytest.mark.parametrize(("kind", "steps", "changes"), [
    ("pix2pix", 25, {"width": 8, "learning_rate": 1e-3}), ("transunet", 25, {"learning_rate": 1e-3}),
    ("resvit", 100, {"learning_rate": 2e-3}),
])  # fmt: skip
def test_overfits_two_people(kind, steps, changes):
    """At least a quarter nearer to each person's PETs than their mean is."""
    method, batch = make(kind, **changes), smooth_batch()
    fit(method, batch, steps)
    pet = method.eval().synthesise(batch.mri, batch.prior, seeded())
    mean_error = (batch.pet - batch.pet.mean(0)).abs().mean()
    assert float((pet - batch.pet).abs().mean()) < 0.75 * float(mean_error)


@pytest.mark.parametrize("kind", [*BASELINES, "resdm"])
def test_channels_last_changes_the_layout_and_no_value(kind, monkeypatch):
    monkeypatch.setattr(base, "_MAX_REORDERED", 10**9)  # all of them
    results, batch = [], smooth_batch(1)
    for on in (False, True):
        torch.manual_seed(0)
        method = make(kind) if kind in TINY else build_method(tiny_resdm(), SHAPE)
        method.adapt(TrainingConfig(channels_last=on), torch.device("cpu"))
        volumes = [weight for weight in method.parameters() if weight.dim() == 5 and min(weight.shape) > 1]
        assert volumes
        assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) == on for weight in volumes)
        loss = next(loss for _, loss in method.losses(batch, seeded()))
        loss.backward()
        results.append([loss, *(weight.grad for weight in method.parameters() if weight.grad is not None)])
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-5)
