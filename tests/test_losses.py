"""Eq. 4, 6 and 7 against their formulas, and their masks."""

from __future__ import annotations

import pytest
import torch

from resdm.losses import difference_loss, reconstruction_loss, total_loss


@pytest.fixture
def volumes(generator):
    return torch.rand((3, 2, 4, 5, 6), generator=generator), torch.rand((3, 2, 4, 5, 6), generator=generator)


ALL = torch.ones((3, 2), dtype=torch.bool)


def test_reconstruction_is_the_sum_of_two_mean_squared_errors(volumes):
    x, y = volumes
    expected = sum(torch.nn.functional.mse_loss(x[:, i], y[:, i]) for i in range(2))
    torch.testing.assert_close(reconstruction_loss(x, y, ALL), expected)


def test_difference_is_equation_6(volumes):
    x, y = volumes
    expected = (((x[:, 0] - x[:, 1]).abs() - (y[:, 0] - y[:, 1]).abs()) ** 2).mean()
    torch.testing.assert_close(difference_loss(x, y, ALL), expected)


def test_total_is_equation_7(volumes):
    x, y = volumes
    loss, parts = total_loss(x, y, ALL, 0.1)
    torch.testing.assert_close(loss, reconstruction_loss(x, y, ALL) + 0.1 * difference_loss(x, y, ALL))
    assert set(parts) == {"rec", "high"}
    assert not any(part.requires_grad for part in parts.values())


def test_a_missing_pet_has_no_effect_whatever_its_values(volumes):
    x, y = volumes
    present = torch.tensor([[True, True], [True, False], [False, True]])
    expected = ((x[:2, 0] - y[:2, 0]) ** 2).mean() + ((x[::2, 1] - y[::2, 1]) ** 2).mean()
    torch.testing.assert_close(reconstruction_loss(x, y, present), expected)
    torch.testing.assert_close(difference_loss(x, y, present), difference_loss(x[:1], y[:1], ALL[:1]))
    spoilt = y.clone()
    spoilt[1, 1] = float("nan")
    spoilt[2, 0] = float("inf")
    torch.testing.assert_close(reconstruction_loss(x, spoilt, present), expected)
    assert torch.isfinite(difference_loss(x, spoilt, present))


def test_missing_pets_give_no_gradient(volumes):
    x, y = volumes
    x = x.clone().requires_grad_()
    total_loss(x, y, torch.tensor([[True, True], [True, False], [False, False]]), 0.1)[0].backward()
    assert (x.grad[0] != 0).all()
    assert (x.grad[1, 0] != 0).all()
    assert (x.grad[1, 1] == 0).all()
    assert (x.grad[2] == 0).all()


def test_losses_are_zero_where_nobody_has_the_tracers(volumes):
    x, y = volumes
    x = x.clone().requires_grad_()
    loss = difference_loss(x, y, torch.tensor([[True, False], [False, True], [False, False]]))
    assert loss.item() == 0
    loss.backward()
    assert (x.grad == 0).all()
    assert reconstruction_loss(x, y, ~ALL).item() == 0
