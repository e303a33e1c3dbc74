"""Options that make training and sampling cheaper: each takes effect and changes no other value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import random_batch, step, tiny_network, tiny_resdm
from measure import Ledger
from tiny_baselines import TINY, make
from tiny_methods import Sessions, collate, make_config, train
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resdm.batch import Prior
from resdm.layers.upsampling import upsample
from resdm.method import NETWORKS, build_method
from resdm.settings import TrainingConfig
from resdm.unet import NetworkConfig
from resdm_suite.apps.prediction import Model

SHAPE = (8, 8, 8)


def build(network: NetworkConfig, shape=SHAPE, **changes):
    torch.manual_seed(0)
    return build_method(tiny_resdm(network=network, **changes), shape)


def gradients(method, batch, seed=0):
    torch.manual_seed(seed)  # of dropout
    loss = step(method, batch)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in method.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("stem", ["haar", "none"])
def test_activation_checkpointing_gives_the_same_gradients_with_less_memory(stem):
    shape = (16, 16, 16)
    batch, kept, found = random_batch(2, shape), {}, {}
    for on in (False, True):
        method = build(tiny_network(stem=stem, dropout=0.3, checkpoint_activations=on), shape)
        with Ledger() as ledger:
            torch.manual_seed(1)
            loss = step(method, batch)
        kept[on] = ledger.now
        del loss
        found[on] = gradients(method, batch)
    assert torch.equal(found[True][0], found[False][0])
    assert found[True][1].keys() == found[False][1].keys()
    for name, grad in found[True][1].items():
        assert torch.equal(grad, found[False][1][name]), name
    assert kept[True] < 0.8 * kept[False]


@pytest.mark.parametrize("size", [(6, 8, 10), (5, 8, 9), (6, 7, 10)])
def test_fused_upsampling_is_interpolation_and_convolution(size):
    """Values and gradients of weights, bias and input; a size that is no double is interpolated as ever."""
    torch.manual_seed(0)
    conv, x = nn.Conv3d(3, 5, 3, padding=1).double(), torch.randn(2, 3, 3, 4, 5, dtype=torch.double)
    found = []
    for fused in (True, False):
        own = x.clone().requires_grad_()
        out = upsample(own, conv, torch.Size(size), fused)
        (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        found.append((out, own.grad, conv.weight.grad, conv.bias.grad))
        conv.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][0], conv(F.interpolate(x, size=size)), rtol=1e-12, atol=1e-12)


def test_fused_upsampling_does_a_third_of_the_work_where_sizes_double():
    torch.manual_seed(0)
    conv, x = nn.Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, 6, 6, 6)
    flops = []
    for fused in (True, False):
        with FlopCounterMode(display=False) as counter:
            upsample(x, conv, torch.Size((12, 12, 12)), fused)
        flops.append(counter.get_total_flops())
    kernel = 2 * conv.weight[..., 0, 0, 0].numel() * 27 * 64
    assert flops[0] - kernel == pytest.approx(8 / 27 * flops[1])


def test_the_optimiser_is_fused_and_has_the_methods_settings():
    method = build(tiny_network(), learning_rate=0.3, betas=(0.5, 0.6), weight_decay=0.7)
    optimiser = method.optimisers()["model"]
    assert isinstance(optimiser, torch.optim.AdamW)
    (group,) = optimiser.param_groups
    assert [group[key] for key in ("fused", "lr", "betas", "weight_decay")] == [True, 0.3, (0.5, 0.6), 0.7]
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    assert all(one is other for one, other in zip(group["params"], trained, strict=True))


def test_prompts_are_encoded_once_per_synthesis_and_frozen_blocks_run_once_per_prompt():
    method, calls = build(tiny_network(), sampling_steps=5).eval(), {"last": 0, "frozen": 0}
    blocks = method.prior.tower.transformer.resblocks
    blocks[-1].register_forward_hook(lambda *_: calls.__setitem__("last", calls["last"] + 1))
    blocks[0].register_forward_hook(lambda *_: calls.__setitem__("frozen", calls["frozen"] + 1))
    mri = torch.rand(1, 1, *SHAPE)
    for _ in range(3):
        method.synthesise(mri, Prior((70.0,), ("F",)), torch.Generator().manual_seed(0))
    assert calls == {"last": 3, "frozen": 2}  # one call per synthesis, not per step; two distinct prompts


def test_compile_marks_the_networks_of_every_method(tmp_path, monkeypatch):
    """Training and sampling both compile, and the names of weights stay."""
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *_, **__: seen.append(type(module).__name__))
    for on in (False, True):
        config = make_config(tmp_path / str(on), methods={"ResDM": tiny_resdm()}, epochs=1, compile=on)
        torch.manual_seed(0)
        method = build_method(config.method("ResDM"), (16, 16, 16))
        names = list(method.state_dict())
        folder = train(method, config, "ResDM", Sessions(2), collate=collate, progress=False)
        assert list(method.state_dict()) == names
        assert seen == ["UNet"] * on
        Model.load(folder)
        assert seen == ["UNet"] * 2 * on


@pytest.mark.slow
def test_compiled_networks_give_the_same_values(monkeypatch):
    """Traced and differentiated as by torch.compile; its default backend would build C++ for minutes."""
    default = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: default(module, backend="aot_eager"))
    plain, compiled = (build(tiny_network(stem="haar")).eval() for _ in range(2))
    compiled.adapt(TrainingConfig(compile=True), torch.device("cpu"))
    assert compiled.unet._compiled_call_impl is not None
    batch = random_batch(1, SHAPE)
    one, two = (m.synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(0)) for m in (plain, compiled))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_every_method_has_a_network_that_compile_finds():
    for kind in TINY:
        method = make(kind)
        assert [name for name, _ in method.named_modules() if name.rpartition(".")[2] in NETWORKS], kind


def test_a_shard_is_every_nth():
    values, second = torch.arange(6), Prior((1.0,) * 3, ("F",) * 3, (1, 2))
    assert second.local(values).tolist() == [1, 3, 5]
    assert second.global_size == 6
    third = Prior((1.0,) * 2, ("F",) * 2, (2, 3))
    assert third.local(torch.stack([values, values + 10]), dim=1).tolist() == [[2, 5], [12, 15]]
    assert torch.equal(Prior((1.0,) * 6, ("F",) * 6).local(values), values)
