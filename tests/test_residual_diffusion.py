"""ResDM and its regression control: the parts tied together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_batch, step, tiny_prior, tiny_regression, tiny_resdm

from resdm.batch import Batch
from resdm.losses import total_loss
from resdm.method import build_method
from resdm_suite.apps.trace import trace as trace_steps

SHAPE = (8, 8, 8)


def build(config=None, seed=0):
    torch.manual_seed(seed)
    return build_method(config or tiny_resdm(), SHAPE)


@pytest.mark.parametrize("config", [tiny_resdm(), tiny_regression()], ids=["ResDM", "regression"])
def test_every_trainable_weight_has_a_gradient_and_no_frozen_one(config):
    method = build(config)
    step(method, random_batch()).backward()
    assert {*dict(method.named_parameters())} == {*dict(build().named_parameters())}  # the control has the same network
    for name, weight in method.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == weight.requires_grad, name


def test_loss_is_equation_7_of_the_predicted_pets():
    method, batch = build(tiny_resdm(lambda_high=0.3)), random_batch()
    batch = replace(batch, present=torch.tensor([[True, True], [True, False]]))
    g = torch.Generator().manual_seed(4)
    t = torch.randint(15, (2,), generator=g)
    noise = torch.randn(batch.pet.shape, generator=g)
    eta = torch.linspace(0.04, 0.999, 15)[t].view(2, 1, 1, 1, 1)
    x_t = batch.pet + eta * (batch.mri - batch.pet) + 0.1 * eta.sqrt() * noise
    x0_hat = method.predict(x_t, batch.mri, t, method.context(batch.prior))
    expected, _ = total_loss(x0_hat, batch.pet, batch.present, 0.3)
    torch.testing.assert_close(step(method, batch, seed=4), expected)


def test_more_draws_at_the_start_of_sampling_where_asked():
    batch = random_batch(8)

    def drawn(share):
        method, seen = build(tiny_resdm(start_share=share)), []
        method.predict = lambda x_t, mri, t, *_: seen.append(t) or x_t
        generator = torch.Generator().manual_seed(0)
        for _ in range(25):
            list(method.losses(batch, generator))
        return torch.cat(seen)

    uniform, half, all_ = (drawn(share) for share in (0.0, 0.5, 1.0))
    assert (all_ == 14).all()
    assert set(uniform.tolist()) == set(half.tolist()) == set(range(15))
    # 200 draws: shares of 1/15 and 1/2 + 1/30, standard deviations of 0.018 and 0.035
    assert float((uniform == 14).float().mean()) == pytest.approx(1 / 15, abs=0.06)
    assert float((half == 14).float().mean()) == pytest.approx(1 / 2 + 1 / 30, abs=0.12)


def test_one_pass_for_both_tracers_equals_one_by_one():
    method, batch = build(), random_batch()
    context, t = method.context(batch.prior), torch.tensor([3, 9])
    both = method.predict(batch.pet, batch.mri, t, context)
    for i in range(2):
        alone = method.unet(batch.pet[:, i : i + 1], batch.mri, t, context[i::2])
        torch.testing.assert_close(both[:, i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_prompt_conditions_the_synthesis():
    method, batch = build(), random_batch()
    with torch.no_grad():
        right = method.context(batch.prior)
        for partial in (batch.prior.without("age"), batch.prior.without("sex")):
            assert not torch.allclose(right, method.context(partial))
        assert not torch.allclose(right[0], right[1]), "amyloid and tau prompts differ"
    base = build(tiny_resdm(prior=tiny_prior(fields=())))
    with torch.no_grad():
        assert torch.equal(base.context(batch.prior), base.context(batch.prior.without("age", "sex")))


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_synthesis_is_the_generators_in_range_and_shape(steps):
    method, batch = build(), random_batch(3)
    torch.nn.init.constant_(method.unet.outlet[-1].bias, 0.3)  # fresh weights give about 0, where clamping hides noise
    first, second = (
        method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(1), steps=steps) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == (3, 2, *SHAPE)
    assert first.min() >= 0
    assert first.max() <= 1
    other = method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(2), steps=steps)
    assert not torch.equal(first, other)


def test_an_oracle_network_gives_back_the_pet(monkeypatch):
    method, batch = build(), random_batch()
    monkeypatch.setattr(method, "predict", lambda *_: batch.pet)
    out = method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, batch.pet)
    with pytest.raises(ValueError, match="0 sampling steps; expected 1 to T = 15"):
        method.synthesise(batch.mri, batch.prior, torch.Generator(), steps=0)


def test_regression_is_one_deterministic_pass():
    method, batch = build(tiny_regression()), random_batch()
    out = [method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(s)) for s in range(2)]
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize(
    ("config", "bound"), [(tiny_resdm(learning_rate=1e-2), 0.35), (tiny_regression(learning_rate=1e-2), 0.2)],
    ids=["ResDM", "regression"],
)  # fmt: skip
def test_overfits_two_people(config, bound):
    """Two people, smooth volumes: the loss falls to a fraction of what predicting the mean gives."""
    batch = random_batch(2)
    smooth = [torch.nn.functional.avg_pool3d(v, 5, 1, 2) for v in (batch.mri, batch.pet)]
    batch = Batch(*[(v - v.min()) / (v.max() - v.min()) for v in smooth], batch.present, batch.prior)
    method, g = build(config), torch.Generator().manual_seed(0)
    optimiser = method.optimisers()["model"]
    losses = []
    for _ in range(80):
        ((_, loss),) = method.losses(batch, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    variance = batch.pet.var(dim=(0, 2, 3, 4), correction=0).sum().item()
    assert sum(losses[-20:]) / 20 < bound * variance


def test_trace_follows_the_equations():
    method = build()
    batch = random_batch(1)
    trace = trace_steps(method, batch, torch.Generator().manual_seed(0))
    assert trace["forward_t"].tolist() == [1, 4, 7, 9, 12, 15]
    assert trace["reverse_t"].tolist() == [15, 12, 9, 6, 3, 0]
    assert trace["forward"].shape == trace["reverse"].shape == (2, 6, *SHAPE)
    out = method.synthesise(batch.mri, batch.prior, _after_forward(batch))
    torch.testing.assert_close(torch.from_numpy(trace["reverse"][:, -1]).clamp(0, 1), out[0])
    assert np.corrcoef(trace["reverse"][0, 0].ravel(), trace["mri"].ravel())[0, 1] > 0.9, "x_T is the noisy MRI"
    assert trace["attention"].shape[:2] == (2, 5)
    assert trace["attention"].sum(1) == pytest.approx(1, abs=1e-5)
    assert trace["attention"].min() > 0
    assert "Tau-PET" in trace["prompts"][1]


def _after_forward(batch):
    g = torch.Generator().manual_seed(0)
    torch.randn(batch.pet.shape, generator=g)
    return g
