"""One ResDM a tracer: neither model learns from the other tracer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_batch, tiny_network, tiny_prior
from tiny_baselines import fit, seeded

from resdm.baselines.separate import SeparateConfig
from resdm.losses import reconstruction_loss
from resdm.method import build_method
from resdm.settings import ConfigError

SHAPE, N = (8, 8, 8), 9
TINY = SeparateConfig(network=tiny_network(linear_path=True), prior=tiny_prior(), ema=0.9, learning_rate=1e-2)


def build(seed=0):
    torch.manual_seed(seed)
    return build_method(TINY, SHAPE)


def prepared():
    method, batch = build(), random_batch(N)
    method.prepare(0, None, [batch])
    return method, batch


def test_each_model_has_the_loss_of_its_tracer_and_gradients_in_its_trainable_weights():
    method, batch = prepared()
    seen = []
    for i, model in enumerate(method.models.values()):
        keep = model.predict
        model.predict = lambda *inputs, keep=keep, i=i: seen.append((i, keep(*inputs))) or seen[-1][1]
    for (name, loss), tracer in zip(method.losses(batch, seeded()), (0, 1), strict=True):
        index, x0_hat = seen[-1]
        alone = torch.eye(2, dtype=torch.bool)[tracer].expand(N, 2)
        assert (index, name) == (tracer, ("amyloid.model", "tau.model")[tracer])
        torch.testing.assert_close(loss, reconstruction_loss(x0_hat, batch.pet, alone))
        loss.backward()
    assert [*method.scalars] == ["amyloid.rec", "tau.rec"]
    for name, weight in method.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == weight.requires_grad, name


def test_a_tracer_that_nobody_has_trains_nothing_and_changes_nothing():
    method, batch = prepared()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert [*fit(method, replace(batch, present=torch.tensor([[False, True]]).expand(N, 2)), 1)] == ["tau.model"]
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("models.tau.") for name in changed)


def test_amyloid_does_not_depend_on_the_tau_pet():
    results = []
    for tau in (0.1, 0.9):
        method, batch = build(), random_batch(N)
        batch = replace(batch, pet=torch.stack([batch.pet[:, 0], torch.full_like(batch.pet[:, 1], tau)], 1))
        method.prepare(0, None, [batch])
        assert [*fit(method, replace(batch, present=torch.tensor([[True, False]] * N)), 2)] == ["amyloid.model"]
        results.append(method.synthesise(batch.mri, batch.prior, seeded()))
    torch.testing.assert_close(results[0][:, 0], results[1][:, 0], rtol=0, atol=0)
    assert not torch.allclose(results[0][:, 1], results[1][:, 1])  # the linear path alone has read it


def test_synthesis_takes_each_pet_from_its_model_and_weights_survive_storage():
    method, batch = prepared()
    fit(method, batch, 1)
    pets = method.eval().synthesise(batch.mri, batch.prior, seeded(), steps=2)
    generator = seeded()
    for channel, model in enumerate(method.models.values()):  # one stream of noise
        one = model.synthesise(batch.mri, batch.prior, generator, steps=2)
        torch.testing.assert_close(pets[:, channel], one[:, channel])
    again = build(seed=1).eval()
    again.resize({name: tuple(value.shape) for name, value in method.state_dict().items()})
    again.load_state_dict(method.state_dict())
    generator = seeded()
    torch.testing.assert_close(again.synthesise(batch.mri, batch.prior, generator, steps=2), pets, rtol=0, atol=0)


def test_a_loss_between_tracers_is_refused():
    with pytest.raises(ConfigError, match=r"lambda_high is 0\.1; expected 0"):
        replace(TINY, lambda_high=0.1)
