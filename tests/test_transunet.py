"""TransUNet: tokens, standardised weights, skips."""

from __future__ import annotations

import pytest
import torch
from tiny_baselines import TINY, make
from torch import nn

from resdm.baselines.adversarial import ConditionalGAN, Conv3d
from resdm.baselines.transunet import StandardisedConv3d, TransUNetConfig, TransUNetGenerator


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((128,) * 3, (8, 8, 8)), ((64,) * 3, (4, 4, 4)), ((32,) * 3, (4, 4, 4)), ((32, 40, 24), (4, 5, 3)),
     ((96, 120, 104), (6, 8, 7)), ((16,) * 3, (2, 2, 2))],
)  # fmt: skip
def test_tokens(shape, grid):
    """512 at 128³; a small grid's last stage keeps its resolution."""
    with torch.device("meta"):
        net = TransUNetGenerator(TINY["transunet"], shape)
        seen = []
        net.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        assert net(torch.empty(1, 1, *shape)).shape == (1, 1, *shape)
    assert net.grid == grid
    assert seen == [(1, grid[0] * grid[1] * grid[2], 16)]


def test_weights_are_standardised():
    """Scale and shift of an output channel's weights change nothing, and the effective ones have unit variance."""
    torch.manual_seed(0)
    conv, x = StandardisedConv3d(3, 4, 3, bias=False), torch.rand(1, 3, 5, 5, 5)
    before = conv(x)
    weight = conv.weight.detach().clone()
    standard = (weight - weight.mean((1, 2, 3, 4), keepdim=True)) / weight.std((1, 2, 3, 4), correction=0, keepdim=True)
    torch.testing.assert_close(before, nn.functional.conv3d(x, standard), rtol=5e-3, atol=5e-3)  # ε 1e-5
    with torch.no_grad():
        conv.weight.mul_(30).add_(2)
    torch.testing.assert_close(conv(x), nn.functional.conv3d(x, standard), rtol=1e-4, atol=1e-4)


def test_all_convolutions_of_the_encoder_are_standardised_and_none_of_the_decoder():
    net = make("transunet").models["amyloid"].generator
    for part, kind in ((net.root, StandardisedConv3d), (net.stages, StandardisedConv3d), (net.decoder, Conv3d)):
        assert {type(m) for m in part.modules() if isinstance(m, nn.Conv3d)} == {kind}


def test_it_is_trained_like_pix2pix():
    model = make("transunet").models["tau"]
    assert type(model) is ConditionalGAN
    assert TransUNetConfig().l1_weight == 100
