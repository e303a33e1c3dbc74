"""The network: wavelets exact, attention the textbook's, sizes free, every weight used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_network

from resdm.layers.wavelet import haar, inverse_haar
from resdm.unet import Attention, NetworkConfig, UNet, norm


def test_haar_is_orthonormal_and_exactly_inverted(generator):
    x = torch.randn((2, 2, 6, 8, 4), generator=generator, dtype=torch.float64)
    bands = haar(x)
    assert bands.shape == (2, 16, 3, 4, 2)
    torch.testing.assert_close(inverse_haar(bands), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(bands[:, 8:], haar(x[:, 1:]))  # channels stay apart
    torch.testing.assert_close(bands.square().sum(), x.square().sum())  # so white noise stays white noise
    torch.testing.assert_close(haar(torch.ones(1, 1, 2, 2, 2))[0, :, 0, 0, 0], torch.tensor([8**0.5] + [0.0] * 7))


def test_group_norm_keeps_the_precision_of_its_input(generator):
    x, layer = torch.randn((2, 8, 3, 4, 5), generator=generator), norm(8, 4)
    layer.weight.data.uniform_(0.5, 1.5)
    expected = F.group_norm(x, 4, layer.weight, layer.bias)
    assert layer(x).equal(expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


def test_cross_attention_is_scaled_dot_product_attention(generator):
    torch.manual_seed(0)
    attention = Attention(16, heads=4, groups=4, context_dim=12)
    x, context = torch.randn((2, 16, 2, 3, 4), generator=generator), torch.randn((2, 77, 12), generator=generator)
    voxels = F.group_norm(x, 4, attention.norm.weight, attention.norm.bias).flatten(2).transpose(1, 2)
    q = voxels @ attention.q.weight.T
    k, v = (context @ w.T for w in attention.kv.weight.chunk(2))
    heads = []
    projected_q, projected_k, _ = attention.project(x, context)
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5).softmax(-1)
        heads.append(weights @ v[..., part])
        logits = projected_q[:, h] @ projected_k[:, h].transpose(1, 2)
        torch.testing.assert_close((logits / 4**0.5).softmax(-1), weights)
    expected = x + F.linear(torch.cat(heads, -1), attention.out.weight, attention.out.bias).transpose(1, 2).reshape(
        x.shape
    )
    torch.testing.assert_close(attention(x, context), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["none", "haar"])
@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10), (12, 6, 5)])
def test_any_size_comes_back(generator, stem, size):
    torch.manual_seed(0)
    net = UNet(tiny_network(stem=stem), context_dim=12)
    x = torch.randn((2, 1, *size), generator=generator)
    out = net(x, x, torch.tensor([0, 3]), torch.randn((2, 5, 12), generator=generator))
    assert out.shape == x.shape
    assert out.abs().max() < 1


@pytest.mark.parametrize("stem", ["none", "haar"])
def test_every_weight_gets_a_gradient(generator, stem):
    torch.manual_seed(0)
    net = UNet(tiny_network(stem=stem, multipliers=(1, 2, 4), attention_levels=(1, 2)), context_dim=12)
    x = torch.randn((2, 1, 16, 16, 16), generator=generator)  # of a single voxel the softmax is 1 and sends none to Q
    net(x, x.flip(0), torch.tensor([0, 3]), torch.randn((2, 5, 12), generator=generator)).square().sum().backward()
    dead = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


@pytest.mark.parametrize("which", ["x_t", "y0", "t", "context"])
def test_every_input_matters(generator, which):
    torch.manual_seed(0)
    net = UNet(tiny_network(), context_dim=12).eval()
    shapes = {"x_t": (1, 1, 8, 8, 8), "y0": (1, 1, 8, 8, 8), "context": (1, 5, 12)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs["t"] = torch.tensor([3])
    before = net(**inputs)
    inputs[which] = inputs[which] + 1
    assert (net(**inputs) - before).abs().max() > 1e-4


def test_size_is_the_released_networks():
    """29.2 M in the released code; ours adds the second input channel and real cross-attention."""
    with torch.device("meta"):
        net = UNet(NetworkConfig(), context_dim=256)
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(29.2e6, rel=0.01)
