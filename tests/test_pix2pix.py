"""Pix2Pix: layers of the U-Net, losses."""

from __future__ import annotations

import pytest
import torch
from tiny_baselines import make, seeded, smooth_batch
from torch import nn

from resdm.baselines.pix2pix import UNetGenerator


@pytest.mark.parametrize(("shape", "levels"), [
    ((256,) * 3, 8), ((128,) * 3, 7), ((32,) * 3, 5), ((32, 40, 24), 4), ((96, 120, 104), 6), ((16,) * 3, 4),
])  # fmt: skip
def test_levels_halve_the_shortest_axis_to_one_voxel(shape, levels):
    with torch.device("meta"):
        net = UNetGenerator(32, shape, 0.5)
    assert len(net.down) == levels
    assert min(shape) >> levels == 1
    assert [c.out_channels for c in net.down] == [32, 64, 128, 256, 256, 256, 256, 256][:levels]


def test_norms_biases_and_dropout_are_where_the_original_has_them():
    with torch.device("meta"):
        net = UNetGenerator(32, (128, 128, 128), 0.5)
    assert [isinstance(norm, nn.InstanceNorm3d) for norm in net.down_norm] == [False, *[True] * 5, False]
    assert [isinstance(norm[0], nn.InstanceNorm3d) for norm in net.up_norm] == [False, *[True] * 6]
    assert [up[-1].p for up in net.up_norm] == [0, 0, 0, 0, 0.5, 0.5, 0]
    assert [c.bias is not None for c in net.up] == [True, *[False] * 6]
    assert all(c.bias is None for c in net.down)
    assert {c.kernel_size for c in [*net.down, *net.up]} == {(4, 4, 4)}
    assert float(UNetGenerator(8, (16, 16, 16), 0.5).down[2].weight.detach().std()) == pytest.approx(0.02, rel=0.03)


def test_losses_by_hand():
    method, batch = make("pix2pix", l1_weight=7.0), smooth_batch()
    model = method.models["tau"]
    mri, pet = 2 * batch.mri - 1, 2 * batch.pet[:, 1:] - 1
    fake = model.generator(mri)

    def probability(volume):
        return model.discriminator(torch.cat([mri, volume], 1))[-1].sigmoid()

    steps = model.losses(batch.mri, batch.pet[:, 1:], seeded())
    name, loss = next(steps)
    expected = -0.5 * (probability(pet).log().mean() + (1 - probability(fake)).log().mean())
    assert name == "discriminator"
    torch.testing.assert_close(loss, expected)

    with torch.no_grad():  # the generator steps against the updated discriminator
        for weight in model.discriminator.parameters():
            weight.mul_(1.1)
    name, loss = next(steps)
    assert name == "generator"
    torch.testing.assert_close(loss, -probability(fake).log().mean() + 7 * (fake - pet).abs().mean())
    torch.testing.assert_close(model.scalars["l1"], (fake - pet).abs().mean().detach())
    list(method.losses(batch, seeded()))
    names = {f"{tracer}.{part}" for tracer in ("amyloid", "tau") for part in ("discriminator", "adversarial", "l1")}
    assert set(method.scalars) == names
    assert not any(value.requires_grad for value in method.scalars.values())
