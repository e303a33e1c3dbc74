"""Losses, norms, discriminator and encoder that the adversarial baselines share."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_baselines import count
from torch import nn

from resdm.baselines import adversarial
from resdm.baselines.adversarial import Conv3d, InstanceNorm3d, TokenEmbedding, adversarial_loss, frozen


def test_adversarial_losses_by_hand():
    logits = torch.tensor([-2.0, 0.5, 3.0])
    d = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(adversarial_loss(logits, True), -d.log().mean())
    torch.testing.assert_close(adversarial_loss(logits, False), -(1 - d).log().mean())
    torch.testing.assert_close(adversarial_loss(logits, True, "lsgan"), (logits - 1).square().mean())
    torch.testing.assert_close(adversarial_loss(logits, False, "lsgan"), logits.square().mean())


@pytest.mark.parametrize("real", [True, False])
def test_the_loss_of_a_certain_and_wrong_discriminator_is_finite(real):
    logits = torch.tensor([-200.0 if real else 200.0], requires_grad=True)
    loss = adversarial_loss(logits, real)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert abs(logits.grad.item()) == pytest.approx(1)


def test_frozen_passes_gradients_on_but_keeps_none():
    module, fixed = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)
    both = nn.ModuleList([module, fixed])
    x = torch.ones(1, 3, requires_grad=True)
    with frozen(both):
        loss = module(x).sum()
    loss.backward()
    assert module.weight.grad is None
    torch.testing.assert_close(x.grad, module.weight.detach())
    assert module.weight.requires_grad
    assert not fixed.weight.requires_grad
    with pytest.raises(ZeroDivisionError), frozen(module):
        raise ZeroDivisionError
    assert module.weight.requires_grad


def test_discriminator_is_the_70_voxel_patchgan():
    with torch.device("meta"):
        net = adversarial.patch_discriminator(2, 32, (128, 128, 128))
    convs = [m for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert [c.out_channels for c in convs] == [32, 64, 128, 256, 1]
    assert [c.stride[0] for c in convs] == [2, 2, 2, 1, 1]
    assert {c.kernel_size for c in convs} == {(4, 4, 4)}
    field = 1
    for conv in reversed(convs):
        field = (field - 1) * conv.stride[0] + conv.kernel_size[0]
    assert field == 70
    norms = [m for m in net.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert [(n.num_features, n.affine) for n in norms] == [(64, True), (128, True), (256, True)]
    assert [c.bias is not None for c in convs] == [True, False, False, False, True]


@pytest.mark.parametrize(("shape", "patches"), [((32,) * 3, (2,) * 3), ((24,) * 3, (1,) * 3), ((16,) * 3, (2,) * 3)])
def test_discriminator_has_no_one_voxel_norm(shape, patches):
    logits = adversarial.patch_discriminator(1, 2, shape)(torch.rand(1, 1, *shape))[-1]
    assert logits.shape == (1, 1, *patches)


def test_normal_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(8, 64, 4), nn.InstanceNorm3d(4096, affine=True)).apply(adversarial.normal_weights)
    net.requires_grad_(False)
    assert float(net[0].weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(net[1].weight.mean()) == pytest.approx(1, abs=0.002)
    assert float(net[1].weight.std()) == pytest.approx(0.02, rel=0.05)
    assert not net[0].bias.any()
    assert not net[1].bias.any()


def test_tokens_are_voxels_in_order():
    embedding = TokenEmbedding(2, 5, (2, 3, 4), dropout=0.0)
    x = torch.rand(1, 2, 2, 3, 4)
    tokens = embedding(x)
    assert tokens.shape == (1, 24, 5)
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (2, 3, 4)), embedding.projection(x))


def test_encoder_is_that_of_a_vit():
    """12 d² + 13 d weights a block, pre-norm, dropout in the MLPs alone."""
    dim, layers = 24, 2
    net = adversarial.vit_encoder(dim, layers, 3, 0.1)
    assert count(net) == layers * (12 * dim**2 + 13 * dim) + 2 * dim
    active = [name for name, m in net.named_modules() if isinstance(m, nn.Dropout) and m.p]
    assert active == [f"{layer}.mlp.drop{i}" for layer in range(layers) for i in (1, 2)]

    x, block = torch.rand(1, 7, dim), net.eval()[0]
    q, k, v = block.attn.qkv(block.norm1(x)).reshape(7, 3, 3, 8).permute(1, 2, 0, 3)  # (heads, tokens, 8) each
    attended = ((q @ k.mT) / math.sqrt(8)).softmax(-1) @ v
    y = x + block.attn.out_proj(attended.transpose(0, 1).reshape(1, 7, dim))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_is_torchs_and_takes_amplitude_out(memory_format):
    torch.manual_seed(0)
    norm, x = InstanceNorm3d(3), torch.rand(2, 3, 4, 5, 6).to(memory_format=memory_format)
    reference = nn.InstanceNorm3d(3, affine=True)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    reference.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm(30 * x + 2), norm(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="one voxel"):
        norm(torch.rand(1, 3, 1, 1, 1))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("span", [1, 2, 3])
@pytest.mark.parametrize("length", [2, 5, 6])
def test_two_halves_are_convolved_as_the_whole(length, span, stride, mode):
    torch.manual_seed(0)
    x = torch.randn(1, 2, length, 6, 7, dtype=torch.double)
    settings = {"stride": stride, "padding": span // 2, "padding_mode": mode, "dtype": torch.double}
    plain, halved = nn.Conv3d(2, 3, span, **settings), Conv3d(2, 3, span, **settings)
    halved.load_state_dict(plain.state_dict())
    results = []
    for conv in (plain, halved):
        volume = x.clone().requires_grad_()
        conv(volume).square().sum().backward()
        results.append((conv(volume), volume.grad, conv.weight.grad, conv.bias.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_only_one_small_volume_is_cut(monkeypatch):
    sizes = []
    plain = nn.functional.conv3d
    monkeypatch.setattr(nn.functional, "conv3d", lambda x, *rest: sizes.append(tuple(x.shape)) or plain(x, *rest))
    conv = Conv3d(1, 1, 3, padding=1)
    for shape in ((1, 1, 8, 6, 6), (2, 1, 8, 6, 6), (1, 1, 144, 144, 6)):
        assert conv(torch.rand(shape)).shape == shape
    assert sizes == [(2, 1, 6, 8, 8), (2, 1, 8, 6, 6), (1, 1, 144, 144, 6)]
