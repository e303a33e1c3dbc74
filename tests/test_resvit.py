"""ResViT: one shared transformer, availability, the first stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_batch
from tiny_baselines import SHAPE, TINY, fit, make, seeded, smooth_batch

from resdm.baselines.resvit import Generator
from resdm.checkpoint import tensors


def test_two_blocks_share_one_encoder():
    method = make("resvit")
    seen = []
    method.generator.encoder.register_forward_hook(lambda module, inputs, output: seen.append(id(module)))
    method.synthesise(torch.rand(1, 1, *SHAPE), None, seeded())
    assert seen == [id(method.generator.encoder)] * 2
    assert list(method.generator.paths) == ["0", "5"]
    assert len(method.generator.residual) == 9
    # One set of weights: a model file stores it once, and an optimiser steps it once.
    assert len(tensors(method)) == len(method.state_dict())
    first, second = method.generator.paths.values()
    assert first.embedding.positions is not second.embedding.positions


@pytest.mark.parametrize(
    ("shape", "grid"), [((128,) * 3, (8, 8, 8)), ((32,) * 3, (4, 4, 4)), ((32, 40, 24), (4, 5, 3)), (SHAPE, (2, 2, 2))]
)
def test_tokens(shape, grid):
    with torch.device("meta"):
        net = Generator(TINY["resvit"], shape)
        assert net(torch.empty(1, 3, *shape)).shape == (1, 3, *shape)
    assert [path.grid for path in net.paths.values()] == [grid, grid]


def test_availability_in_training():
    """Amyloid, tau or both are hidden, a third each; a person's only PET always is."""
    method, g = make("resvit"), seeded()
    present = torch.tensor([[True, True]]).repeat(3000, 1)
    shown = method._available(present, g)
    for pattern in ([False, False], [True, False], [False, True]):
        assert float((shown == torch.tensor(pattern)).all(1).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert not (shown.all(1)).any()
    single = torch.tensor([[True, False], [False, True]]).repeat(50, 1)
    assert not method._available(single, g).any()


def test_the_gain_of_the_mri_does_not_reach_the_output():
    """Reflected borders, no biases and the first norm: a person's overall intensity is lost."""
    method, mri = make("resvit").eval(), torch.rand((1, 1, *SHAPE), generator=seeded())
    pets = [method.synthesise(gain * mri, None, seeded()) for gain in (1.0, 0.6)]
    torch.testing.assert_close(*pets, atol=1e-3, rtol=0)
    assert (method.synthesise(mri**2, None, seeded()) - pets[0]).abs().max() > 0.01


def test_a_hidden_pet_has_no_effect():
    method, batch = make("resvit").eval(), random_batch(2, SHAPE)
    volumes = torch.cat([batch.mri, batch.pet], 1)
    available = torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        one = method._translate(volumes, available)
        two = method._translate(torch.where(available[..., None, None, None], volumes, 7.0), available)
        three = method._translate(volumes, torch.ones_like(available))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)


def test_synthesis_uses_the_mri_only():
    method, batch = make("resvit").eval(), random_batch(2, SHAPE)
    with torch.no_grad():
        inputs = torch.cat([2 * batch.mri - 1, torch.zeros_like(batch.pet)], 1)
        expected = (method.generator(inputs)[:, 1:] + 1) / 2
    assert torch.equal(method.synthesise(batch.mri, batch.prior, seeded()), expected)


@pytest.mark.parametrize("seed", range(3))
def test_losses_by_hand(seed):
    method, batch = make("resvit", l1_weight=10.0, dropout=0.0), smooth_batch(4)
    batch = replace(batch, present=torch.tensor([[True, True], [True, True], [False, True], [False, False]]))
    shown = method._available(batch.present[:3], seeded(seed))  # the person without PET is left out
    real = 2 * torch.cat([batch.mri, batch.pet], 1)[:3] - 1
    inputs = real.clone()
    inputs[:, 1:][~shown] = 0
    fake = method.generator(inputs)

    def logits(volumes):
        stack = volumes.clone()
        for person in range(3):
            stack[person, 0] = real[person, 0]  # the MRI is always available
            for tracer in range(2):
                if shown[person, tracer]:
                    stack[person, 1 + tracer] = real[person, 1 + tracer]
                if not batch.present[person, tracer]:
                    stack[person, 1 + tracer] = 0
        return method.discriminator(stack)[-1]

    steps = method.losses(batch, seeded(seed))
    name, loss = next(steps)
    assert name == "discriminator"
    torch.testing.assert_close(loss, 0.5 * (logits(fake).square().mean() + (logits(real) - 1).square().mean()))
    name, loss = next(steps)
    l1 = (fake - real).abs().mean((2, 3, 4))
    synthesised, given = 0.0, l1[:, 0].sum()
    for person in range(3):
        for tracer in range(2):
            if shown[person, tracer]:
                given = given + l1[person, 1 + tracer]
            elif batch.present[person, tracer]:
                synthesised = synthesised + l1[person, 1 + tracer]
    assert name == "generator"
    torch.testing.assert_close(loss, (logits(fake) - 1).square().mean() + 10 * (synthesised + given) / 3)


def test_first_stage_leaves_the_transformer_out():
    method, batch = make("resvit", cnn_steps=2), smooth_batch()

    def transformer():
        net = method.generator
        return [w.detach().clone() for part in (net.encoder, net.paths) for w in part.parameters()]

    before = transformer()
    fit(method, batch, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, transformer(), strict=True))
    assert int(method.steps_done) == 2
    method.eval()
    list(method.losses(batch, seeded()))
    assert int(method.steps_done) == 2  # a loss outside training is no step
    method.train()
    fit(method, batch, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, transformer(), strict=True) if a.ndim > 1 and b.any())
