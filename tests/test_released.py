"""The released code's model: values by formula, names of weights, weights without gradient, cost."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import random_batch, step, tiny_prior
from tiny_baselines import TINY
from tiny_methods import Sessions, collate, make_config, save_profile_model, train
from torch.utils.flop_counter import FlopCounterMode

from resdm.baselines.released import ReleasedConfig, ReleasedUNet, load_released, shifted
from resdm.batch import Prior
from resdm.checkpoint import load_model
from resdm.layers import clip
from resdm.method import build_method
from resdm.prior import PriorConfig, PriorModule, prompt, prompt_tokens
from resdm.unet import Attention
from resdm_suite.apps.model_folder import load_card

SHAPE = (16, 16, 16)
IDLE = ("middle_block.0.", "middle_block.1.", "middle_block.3.")


def tiny(**changes) -> ReleasedConfig:
    return replace(TINY["released"], **changes)


def build(config=None, seed=0, shape=SHAPE):
    torch.manual_seed(seed)
    return build_method(config or tiny(), shape)


# ── the network ───────────────────────────────────────────────────────────────────────────────────


def by_formula(w, x, t, text):
    """The released network, written again from its weights by name.

    x (B, 1, X, Y, Z), t (B,), text (B, 256).
    """

    def linear(name, z):
        return torch.einsum("oi,...i->...o", w[name + ".weight"].flatten(1), z) + w[name + ".bias"]

    def silu(z):
        return z / (1 + torch.exp(-z))

    def conv(name, z, stride=1):
        return F.conv3d(z, w[name + ".weight"], w[name + ".bias"], stride, w[name + ".weight"].shape[-1] // 2)

    def norm(name, z):
        grouped = z.reshape(len(z), 32, -1)
        mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, correction=0)
        z = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(z.shape)
        scale, shift = (w[f"{name}.{part}"].reshape(-1, *[1] * (z.ndim - 2)) for part in ("weight", "bias"))
        return z * scale + shift

    def block(name, z):
        scale, shift = linear(f"{name}.emb_layers.1", silu(time))[..., None, None, None].split(
            w[f"{name}.out_layers.3.bias"].numel(), 1
        )
        h = conv(f"{name}.in_layers.2", silu(norm(f"{name}.in_layers.0", z)))
        h = conv(f"{name}.out_layers.3", silu(norm(f"{name}.out_layers.0", h) * (1 + scale) + shift))
        return h + (conv(f"{name}.skip_connection", z) if f"{name}.skip_connection.weight" in w else z)

    def attend(name, z):
        voxels = norm(f"{name}.norm", z).flatten(2).transpose(1, 2)  # (B, voxels, C)
        q, k, v = linear(f"{name}.qkv", voxels).split(z.shape[1], 2)
        weights = torch.exp(torch.einsum("bnc,bmc->bnm", q, k) / z.shape[1] ** 0.5)
        attended = torch.einsum("bnm,bmc->bnc", weights / weights.sum(2, keepdim=True), v)
        return z + linear(f"{name}.proj_out", attended).transpose(1, 2).reshape(z.shape)

    def gate(name, z):
        channels = z.shape[1]
        q = linear(f"{name}.query", z.flatten(2).transpose(1, 2))  # (B, voxels, C)
        k, v = linear(f"{name}.key", text), linear(f"{name}.value", text)  # (B, C)
        result = torch.empty_like(q)
        for head in range(8):
            own = slice(head * channels // 8, (head + 1) * channels // 8)
            e = torch.exp(torch.einsum("bnc,bc->bnc", q[..., own], k[:, own]) * 256**-0.5)
            result[..., own] = e / e.sum(2, keepdim=True) * v[:, None, own]
        return torch.stack([person.flatten().reshape(z.shape[1:]) for person in result])  # token-major, as stored

    def twice(z):
        for axis in (2, 3, 4):
            z = z.repeat_interleave(2, axis)
        return z

    angles = t[:, None] * torch.tensor([10_000 ** (-i / 16) for i in range(16)], dtype=x.dtype)
    time = linear("time_embed.2", silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    skips = [conv("input_blocks.0.0", x)]
    for i in range(1, 8):
        name = f"input_blocks.{i}.0"
        skips.append(block(name, skips[-1]) if i % 2 else conv(f"{name}.op", skips[-1], 2))
    skips[-1] = attend("input_blocks.7.1", skips[-1])
    z = gate("middle_block.2", skips[-1])
    for i in range(8):
        z = block(f"output_blocks.{i}.0", torch.cat([z, skips.pop()], 1))
        if i < 2:
            z = attend(f"output_blocks.{i}.1", z)
        if i in (1, 3, 5):
            z = conv(f"output_blocks.{i}.{2 if i == 1 else 1}.conv", twice(z))
    return torch.tanh(conv("out.0", z))


def test_forward_equals_the_formulas(generator):
    torch.manual_seed(0)
    net = ReleasedUNet(32).double()
    for name, weight in net.named_parameters():  # fresh norms have scale 1 and shift 0, which would hide a fault
        if "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "layers.0.bias")):
            torch.nn.init.normal_(weight, float(name.endswith("weight")), 0.1)
    x = torch.randn((2, 1, 16, 8, 24), generator=generator, dtype=torch.float64)
    text = 3 * torch.randn((2, 256), generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 14])
    with torch.no_grad():
        out, expected = net(x, t, text[:, None]), by_formula(net.state_dict(), x, t, text)
    assert out.shape == x.shape
    assert 0.05 < out.std() < 0.9, "neither constant nor saturated"
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_7_48_of_29_2_million_weights_get_no_gradient(generator):
    torch.manual_seed(0)
    net = ReleasedUNet(32)
    net(torch.randn((1, 1, *SHAPE), generator=generator), torch.tensor([7]), torch.randn((1, 1, 256))).sum().backward()
    weights = dict(net.named_parameters())
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(29.2e6, rel=0.01)
    without = {name: weight for name, weight in weights.items() if weight.grad is None}
    assert set(without) == {name for name in weights if name.startswith(IDLE)}
    assert sum(weight.numel() for weight in without.values()) == pytest.approx(7.48e6, rel=0.001)
    assert all(weight.grad.any() for weight in weights.values() if weight.grad is not None)


def test_a_forward_pass_costs_2_86_tflop_at_128():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ReleasedUNet(32)(torch.empty(1, 1, 128, 128, 128), torch.empty(1), torch.empty(1, 1, 256))
    assert counter.get_total_flops() == pytest.approx(2.86e12, rel=0.005)


# ── the method ────────────────────────────────────────────────────────────────────────────────────


def test_loss_is_ten_times_both_errors_plus_that_of_the_difference():
    method, batch = build(), random_batch(2, SHAPE)
    g = torch.Generator().manual_seed(4)
    t, noise = torch.randint(15, (2,), generator=g), torch.randn(batch.pet.shape, generator=g)
    eta = torch.linspace(0.04, 0.999, 15)[t].view(2, 1, 1, 1, 1)
    x_t = batch.pet + eta * (batch.mri - batch.pet) + 0.1 * eta.sqrt() * noise
    text = method.text(batch.prior)
    amyloid, tau = (method.unet(x_t[:, [i]], t, text[:, i])[:, 0] for i in range(2))
    real, mse = batch.pet, F.mse_loss
    expected = 10 * (mse(amyloid, real[:, 0]) + mse(tau, real[:, 1]))
    expected = expected + mse((amyloid - tau).abs(), (real[:, 0] - real[:, 1]).abs())
    torch.testing.assert_close(step(method, batch, seed=4), expected)
    alone = replace(batch, present=torch.tensor([[False, True]] * 2))
    torch.testing.assert_close(step(method, alone, seed=4), 10 * mse(tau, real[:, 1]))


def test_text_is_the_pooled_state_of_each_sentence_person_by_person():
    method, prior = build(), Prior((74.0, 61.5), ("F", "M"))
    tower, project = method.prior.tower, method.prior.project
    for i, (age, sex) in enumerate(zip(prior.age, prior.sex, strict=True)):
        for j, tracer in enumerate(("amyloid", "tau")):
            ids = clip.tokens(prompt(tracer, age, sex))
            states = tower.transformer(method.prior.embed(ids[None]), attn_mask=tower.attn_mask)
            pooled = tower.ln_final(states)[0, ids.argmax()] @ tower.text_projection  # CLIP's encode_text, unscaled
            torch.testing.assert_close(method.text(prior)[i, j, 0], project(pooled), rtol=1e-4, atol=1e-5)


def test_the_shift_moves_the_mri_alone():
    mri = torch.rand((40, 1, 12, 10, 8)) + 1
    moved, seen = shifted(mri, 2, torch.Generator().manual_seed(0)), set()
    for before, after in zip(mri[:, 0], moved[:, 0], strict=True):
        inside = after[2:-3, 2:-3, 2:-3]
        assert after.count_nonzero() == inside.numel(), "a margin of zeros"
        (place,) = (before[None] == inside[0, 0, 0]).nonzero()[:, 1:]
        x, y, z = place.tolist()
        assert torch.equal(before[x : x + 7, y : y + 5, z : z + 3], inside)
        seen |= {x - 2, y - 2, z - 2}
    assert seen == {-2, -1, 0, 1, 2}
    assert shifted(mri, 0, None) is mri

    method, batch, x = build(tiny(mri_shift=2)), random_batch(1, SHAPE), []
    g = torch.Generator().manual_seed(3)
    t, noise = torch.randint(15, (1,), generator=g), torch.randn(batch.pet.shape, generator=g)
    expected = method.scheduler.add_noise(batch.pet, shifted(batch.mri, 2, g).expand_as(batch.pet), noise, t)
    method.predict = lambda x_t, *_: x.append(x_t) or batch.pet
    step(method, batch, seed=3)
    torch.testing.assert_close(x[0], expected)


@pytest.mark.parametrize("steps", [3, 5])
def test_synthesis_follows_equation_3(steps):
    method, batch = build(), random_batch(2, SHAPE)
    out = method.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(1), steps=steps)
    g, etas = torch.Generator().manual_seed(1), [0.0, *torch.linspace(0.04, 0.999, 15).tolist()]
    text = method.text(batch.prior)
    x = batch.mri + 0.1 * etas[15] ** 0.5 * torch.randn(batch.pet.shape, generator=g)
    visited = range(15, 0, -15 // steps)
    with torch.no_grad():
        for now, following in zip(visited, [*visited[1:], 0], strict=True):
            t = torch.tensor([now - 1] * 2)
            x0 = torch.cat([method.unet(x[:, [i]], t, text[:, i]) for i in range(2)], 1)
            ratio = etas[following] / etas[now]
            x = ratio * x + (1 - ratio) * x0
            if following:
                deviation = 0.1 * (ratio * (etas[now] - etas[following])) ** 0.5
                x = x + deviation * torch.randn(x.shape, generator=g)
    torch.testing.assert_close(out, x.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_the_average_holds_the_unet_alone(tmp_path):
    config = make_config(tmp_path, methods={"it": tiny(ema_warmup=0)}, epochs=2)
    method = build(config.method("it"))
    folder = train(method, config, "it", Sessions(4), collate=collate, progress=False)
    kept = load_model(folder)
    own = dict(method.named_parameters())
    moving = {n for n, w in own.items() if w.requires_grad and not n.removeprefix("unet.").startswith(IDLE)}
    differ = {name for name, weight in kept.named_parameters() if not torch.equal(weight, own[name])}
    assert differ == {name for name in moving if name.startswith("unet.")}


# ── one fault repaired at a time ─────────────────────────────────────────────────────────────────────


def test_only_the_mended_input_uses_the_mri(generator):
    x, mri, text = (torch.randn(shape, generator=generator) for shape in ((1, 1, *SHAPE), (1, 1, *SHAPE), (1, 1, 64)))
    for repaired in ((), ("input",), ("attention",), ("middle",)):
        torch.manual_seed(0)
        net, t = ReleasedUNet(8, repaired), torch.tensor([3])
        assert torch.equal(net(x, t, text, mri), net(x, t, text, mri + 1)) == (repaired != ("input",))


def test_the_mended_middle_is_a_sequence_of_four_parts(generator):
    torch.manual_seed(0)
    net = ReleasedUNet(8, ("middle",))
    seen = []
    for part in net.middle_block:
        part.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    net(torch.randn((1, 1, *SHAPE), generator=generator), torch.tensor([3]), torch.randn((1, 1, 64))).sum().backward()
    assert all(torch.equal(before[1], after[0]) for before, after in pairwise(seen))
    assert all(weight.grad.any() for weight in net.parameters())


@pytest.mark.parametrize("context", ["pooled", "tokens"])
def test_mended_attention_is_that_of_the_clean_method(context):
    method = build(tiny(repaired=("attention",), prior=tiny_prior(context=context, dim=64)))
    assert isinstance(method.unet.middle_block[2], Attention)
    assert method.text(Prior((70.0,), ("F",))).shape == (1, 2, 1 if context == "pooled" else 77, 64)


# ── its checkpoints ───────────────────────────────────────────────────────────────────────────────


def layout(module):
    """Number and digest of all names and shapes of weights."""
    lines = sorted(f"{name} {tuple(weight.shape)}" for name, weight in module.named_parameters())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.fixture
def checkpoints(tmp_path):
    """Both files as the released code writes them, of random values; and the values."""
    method = build()
    unet = {name: 0.1 * torch.randn(weight.shape) for name, weight in method.unet.named_parameters()}
    text = {
        name.replace("tower.", "model.").replace("project.", "linear."): 0.1 * torch.randn(weight.shape)
        for name, weight in method.prior.named_parameters()
    }
    text["model.token_embedding.weight"] = 0.1 * torch.randn(49408, 16)  # CLIP's whole vocabulary
    text |= {"model.visual.proj": torch.randn(3, 2), "model.logit_scale": torch.randn(())}
    paths = tmp_path / "Unet.pth.tar", tmp_path / "Text_encoder.pth.tar"
    for path, state in zip(paths, (unet, text), strict=True):
        optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        torch.save({"state_dict": state, "optimizer": optimiser}, path)
    return *paths, (unet, text)


def test_names_and_shapes_are_the_released_ones():
    with torch.device("meta"):
        unet, prior = ReleasedUNet(32), PriorModule(PriorConfig(weights="none", context="pooled"))
    assert layout(unet) == (212, "48d97c9c93a109ab")
    assert layout(prior) == (151, "bbe3c5cddf704c2d")


def test_a_released_checkpoint_loads_and_becomes_a_model_folder(checkpoints, tmp_path):
    unet, text, states = checkpoints
    method = load_released(unet, text, tiny(), SHAPE)
    for key, value in states[0].items():
        assert torch.equal(method.unet.state_dict()[key], value), key
    tower = method.prior.tower
    block = "model.transformer.resblocks.1.mlp.c_fc.weight"
    assert torch.equal(tower.transformer.resblocks[1].mlp.c_fc.weight, states[1][block])
    assert torch.equal(method.prior.frozen[0].ln_1.bias, states[1]["model.transformer.resblocks.0.ln_1.bias"])
    assert torch.equal(tower.text_projection, states[1]["model.text_projection"])
    assert torch.equal(tower.token_embedding.weight, states[1]["model.token_embedding.weight"][prompt_tokens()])
    assert torch.equal(method.prior.project.weight, states[1]["linear.weight"])
    config = make_config(tmp_path, methods={"released": tiny()})
    folder = save_profile_model(tmp_path / "model", method, config, "released")
    again, card = load_model(folder), load_card(folder)
    assert card.settings == tiny()
    batch = random_batch(1, SHAPE)
    one, other = (
        m.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(0), steps=2) for m in (method, again)
    )
    torch.testing.assert_close(one, other)


def test_other_files_are_refused(checkpoints, tmp_path):
    unet, text, states = checkpoints
    with pytest.raises(FileNotFoundError, match=r"other\.tar: no such file"):
        load_released(tmp_path / "other.tar", text, tiny(), SHAPE)
    with pytest.raises(
        ValueError, match=r"Text_encoder\.pth\.tar: .* weights are missing, unknown .*U-Net's file first"
    ):
        load_released(text, unet, tiny(), SHAPE)
    with pytest.raises(ValueError, match=r"Unet\.pth\.tar: .* of another shape"):
        load_released(unet, text, tiny(width=16, prior=tiny_prior(context="pooled", dim=128)), SHAPE)
    del states[0]["middle_block.2.key.bias"]
    torch.save({"state_dict": states[0]}, unet)
    with pytest.raises(ValueError, match=r"Unet\.pth\.tar: 1 weights are missing.*'middle_block\.2\.key\.bias'"):
        load_released(unet, text, tiny(), SHAPE)
    for content in (b"not an archive", None):
        unet.write_bytes(content) if content else torch.save({"weights": {}}, unet)
        with pytest.raises(ValueError, match=r"Unet\.pth\.tar: not a checkpoint of the released code"):
            load_released(unet, text, tiny(), SHAPE)


def test_grids_are_multiples_of_8():
    with pytest.raises(ValueError, match=r"multiples of 8, .*grid\.shape is \(16, 20, 16\)"):
        build(shape=(16, 20, 16))
