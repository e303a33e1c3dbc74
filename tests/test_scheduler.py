"""The residual diffusion against Eq. 1–3 in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from resdm.scheduler import ResidualScheduler

SHAPE = (1, 1, 4, 4, 4)


@pytest.fixture
def pair(generator):
    return torch.rand(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator)


def test_linear_sequence_is_that_of_the_released_code():
    etas = ResidualScheduler().etas
    assert etas.shape == (15,)
    torch.testing.assert_close(etas, torch.linspace(0.04, 0.999, 15))


def test_geometric_sequence_is_resshifts():
    # T = 15, κ = 2, m = 0.04: s = 0.02, √η_T = 0.99, p = 0.3.
    etas = ResidualScheduler(15, "geometric", (0.04, 0.99), kappa=2.0, power=0.3).etas
    start, base = 0.02, (0.99 / 0.02) ** (1 / 14)
    for t in range(15):
        tau = 14 * (t / 14) ** 0.3
        assert etas[t].item() == pytest.approx((start * base**tau) ** 2, rel=1e-5)
    assert (etas.diff() > 0).all()


def test_unknown_sequence_is_refused():
    with pytest.raises(ValueError, match="'linear' or 'geometric'"):
        ResidualScheduler(eta="cosine")


@pytest.mark.parametrize("t", [0, 7, 14])
def test_forward_mean_and_variance_are_equation_1(pair, t):
    x0, y0 = pair
    scheduler, n = ResidualScheduler(), 40_000
    noise = torch.randn((n, 1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    steps = torch.full((n,), t)
    steps[0] = 14 - t  # each person has a separate step
    x_t = scheduler.add_noise(x0.expand(n, -1, -1, -1, -1), y0.expand(n, -1, -1, -1, -1), noise, steps)
    other = 0.04 + (0.999 - 0.04) * (14 - t) / 14
    torch.testing.assert_close(x_t[0], (x0 + other * (y0 - x0))[0] + 0.1 * math.sqrt(other) * noise[0])
    eta = 0.04 + (0.999 - 0.04) * t / 14
    sd = 0.1 * math.sqrt(eta)
    x_t = x_t[1:]
    torch.testing.assert_close(x_t.mean(0), (x0 + eta * (y0 - x0))[0], atol=5 * sd / math.sqrt(n), rtol=0)
    torch.testing.assert_close(x_t.std(0), torch.full(SHAPE[1:], sd), atol=0, rtol=0.02)


@pytest.mark.parametrize("t", [1, 6, 14])
def test_posterior_is_the_product_of_gaussians(pair, t):
    """q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x_0), with one step adding α(y_0 − x_0) and κ√α ε."""
    x0, y0 = (volume.double() for volume in pair)
    scheduler = ResidualScheduler()
    eta, before = scheduler.etas[t].double(), scheduler.etas[t - 1].double()
    alpha, kappa = eta - before, 0.1
    x_t = x0 + eta * (y0 - x0) + 0.03
    prior_mean, prior_variance = x0 + before * (y0 - x0), kappa**2 * before
    likelihood_mean, likelihood_variance = x_t - alpha * (y0 - x0), kappa**2 * alpha
    precision = 1 / prior_variance + 1 / likelihood_variance
    mean = (prior_mean / prior_variance + likelihood_mean / likelihood_variance) / precision
    found_mean, found_variance = scheduler.posterior(x0, t, x_t)
    torch.testing.assert_close(found_mean, mean, rtol=1e-5, atol=1e-6)
    assert found_variance == pytest.approx((1 / precision).item(), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 15])
def test_oracle_returns_x0_for_any_respacing(pair, generator, n):
    x0, y0 = pair
    scheduler = ResidualScheduler()
    x = scheduler.start(y0, generator)
    for t in scheduler.set_timesteps(n):
        x = scheduler.step(x0, t, x, generator)
    torch.testing.assert_close(x, x0)  # the last step has no noise and gives x̂_0 itself


def test_reverse_marginals_under_an_oracle_are_the_forward_ones(pair):
    """With the true x_0 at every step, x at index t has the mean and variance of Eq. 1."""
    x0, y0 = pair
    scheduler, n, g = ResidualScheduler(), 20_000, torch.Generator().manual_seed(3)
    x0n, y0n = x0.expand(n, -1, -1, -1, -1), y0.expand(n, -1, -1, -1, -1)
    x = scheduler.start(y0n, g) - (1 - 0.999) * (y0n - x0n)  # Eq. 2 starts at η = 1; take off what Eq. 1 lacks of it
    steps = scheduler.set_timesteps(5)
    for t, after in itertools.pairwise(steps):
        x = scheduler.step(x0n, t, x, g)
        eta = scheduler.etas[after].item()
        sd = 0.1 * math.sqrt(eta)
        torch.testing.assert_close(x.mean(0), (x0 + eta * (y0 - x0))[0], atol=6 * sd / math.sqrt(n), rtol=0)
        torch.testing.assert_close(x.std(0), torch.full(SHAPE[1:], sd), atol=0, rtol=0.03)


@pytest.mark.parametrize("total", [1, 4, 15, 1000])
def test_respaced_steps_hold_the_last_index_and_do_not_repeat(total):
    scheduler = ResidualScheduler(total)
    for n in range(1, min(total, 40) + 1):
        steps = scheduler.set_timesteps(n)
        assert len(steps) == n == len(set(steps))
        assert steps[0] == total - 1
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] >= 0
    assert scheduler.set_timesteps(total) == list(range(total - 1, -1, -1))


@pytest.mark.parametrize("n", [0, 16])
def test_impossible_number_of_steps_is_refused(n):
    with pytest.raises(ValueError, match="expected 1 to T = 15"):
        ResidualScheduler().set_timesteps(n)
