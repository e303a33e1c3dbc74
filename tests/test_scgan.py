"""SC-GAN: spectral norm, attention, and each term of its losses."""

from __future__ import annotations

import pytest
import torch
from tiny_baselines import make, seeded, smooth_batch
from torch import nn
from torch.nn.utils import parametrize

from resdm.baselines.scgan import Discriminator, Generator, SelfAttention, brain_rmse

CONVS = (nn.Conv3d, nn.ConvTranspose3d)


def test_every_convolution_has_spectral_norm_and_no_bias():
    model = make("scgan").models["amyloid"]
    for net in (model.generator, model.discriminator):
        convs = [m for m in net.modules() if isinstance(m, CONVS)]
        assert len(convs) == {Generator: 4 + 4 + 1 + 3 * 4, Discriminator: 4 + 1 + 4}[type(net)]
        assert all(parametrize.is_parametrized(conv, "weight") and conv.bias is None for conv in convs)


@pytest.mark.parametrize("transposed", [False, True])
def test_largest_singular_value_is_one_over_the_originals_matrix(transposed):
    """Rows are outputs of a convolution, inputs of a transposed one, as TensorFlow's kernels lie."""
    net = make("scgan").models["amyloid"].generator
    conv = (net.up if transposed else net.down)[1]
    for _ in range(50):
        weight = conv.weight  # each access in training mode is one power iteration
    assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-3)


def test_anatomy_at_the_papers_grid():
    with torch.device("meta"):
        net, discriminator = Generator(32, (128,) * 3, 0.5), Discriminator(32, (128,) * 3)
    assert [c.kernel_size[0] for c in net.down] == [5, 5, 5, 5, 3, 3, 3]
    assert [c.out_channels for c in net.down] == [32, 64, 128, 256, 256, 256, 256]
    assert [c.out_channels for c in net.up] == [1, 32, 64, 128, 256, 256, 256]
    assert [up[1].p for up in net.up_norm] == [0, 0, 0, 0, 0.5, 0.5, 0.5]
    assert [isinstance(norm, nn.InstanceNorm3d) for norm in net.down_norm] == [False, *[True] * 5, False]
    assert (net.encoder_level, net.decoder_level) == (4, 2)
    assert net.output_attention.pool.stride == 64
    assert [c.out_channels for c in discriminator.down] == [32, 64, 128, 256]
    assert discriminator.attention_level == 2
    assert discriminator.head.kernel_size == (5, 5, 5)


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 40, 24), (17, 23, 19)])
def test_attention_has_more_than_one_key_everywhere(shape):
    """Over a single key the softmax is 1: the same vector everywhere, and no gradient to queries and keys."""
    model = make("scgan", shape).models["amyloid"]
    keys = []
    for module in model.modules():
        if isinstance(module, nn.MaxPool3d):
            module.register_forward_hook(lambda m, inputs, output: keys.append(output[0, 0].numel()))
    x = torch.rand(1, 1, *shape)
    model.discriminator(x, model.generator(x))
    assert len(keys) == 2 * 4
    assert min(keys) >= 8


def test_attention_by_hand():
    torch.manual_seed(0)
    module, x = SelfAttention(16).eval(), torch.rand(1, 16, 4, 4, 4)
    assert torch.equal(module(x), x)  # σ = 0
    with torch.no_grad():
        module.sigma.fill_(0.25)
    query, key = module.query(x).flatten(2)[0], module.pool(module.key(x)).flatten(2)[0]
    value = module.pool(module.value(x)).flatten(2)[0]
    assert (query.shape, key.shape, value.shape) == ((2, 64), (2, 8), (8, 8))
    mixed = torch.stack([value @ (key.T @ query[:, n]).softmax(0) for n in range(64)], 1)  # (8, 64)
    expected = (x + 0.25 * module.out(mixed.reshape(1, 8, 4, 4, 4))) / 1.25
    torch.testing.assert_close(module(x), expected)


def test_rmse_is_inside_the_brain():
    real = torch.tensor([-1.0, -1.0, 0.0, 0.5]).reshape(1, 1, 1, 2, 2)
    fake = torch.tensor([9.0, 9.0, 0.3, 0.1]).reshape(1, 1, 1, 2, 2)
    assert float(brain_rmse(fake, real)) == pytest.approx(((0.09 + 0.16) / 2) ** 0.5)
    assert float(brain_rmse(fake, torch.full_like(real, -1))) == pytest.approx(0, abs=1e-5)  # no brain, no error
    perfect = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    brain_rmse(perfect, torch.zeros(1, 1, 2, 2, 2)).backward()
    assert bool(perfect.grad.isfinite().all())


def test_losses_by_hand():
    """Generator first; then the discriminator on the synthesis of the updated generator."""
    method = make("scgan", dropout=0.0, l1_weight=2.0, rmse_weight=3.0, matching_weight=5.0, l2_weight=0.1)
    batch, model = smooth_batch(), method.models["amyloid"]
    mri, pet = batch.mri, batch.pet[:, :1]
    real = 2 * pet - 1
    model.eval()  # without power iterations, so that a second pass has the same weights

    fake = model.generator(mri)
    logits, maps = model.discriminator(mri, fake)
    _, real_maps = model.discriminator(mri, real)
    weights = sum(w.square().sum() for w in model.generator.parameters())
    expected = (
        -logits.sigmoid().log().mean()
        + 2 * (fake - real).abs().mean()
        + 3 * (fake - real)[real > -1].square().mean().sqrt()
        + 5 * sum((a - b).abs().mean() for a, b in zip(maps, real_maps, strict=True)) / 5
        + 0.1 * 0.5 * weights
    )
    steps = model.losses(mri, pet, seeded())
    name, loss = next(steps)
    assert name == "generator"
    torch.testing.assert_close(loss, expected)

    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(0.5).add_(0.01)
    fresh = model.generator(mri)
    assert not torch.allclose(fresh, fake)
    d_real, d_fake = (model.discriminator(mri, volume)[0].sigmoid() for volume in (real, fresh))
    weights = sum(w.square().sum() for w in model.discriminator.parameters())
    name, loss = next(steps)
    assert name == "discriminator"
    torch.testing.assert_close(loss, -d_real.log().mean() - (1 - d_fake).log().mean() + 0.05 * weights)
    assert set(model.scalars) == {"adversarial", "l1", "rmse", "matching", "discriminator"}
