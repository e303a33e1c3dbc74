"""Settings of the CPU: threads, freed memory, layout, half precision."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import changed, tiny_resdm
from tiny_methods import Sessions, collate, make_config, train

from resdm import cpu_runtime, training
from resdm.method import build_method
from resdm_suite.apps import prediction
from resdm_suite.apps.prediction import Model

FAULTS = """
import resource, sys, torch
from resdm.cpu_runtime import keep_memory
if sys.argv[1] == "keep" and not keep_memory():
    sys.exit("no glibc")
def touch():
    torch.empty(48 << 20, dtype=torch.uint8).fill_(1)
for _ in range(12):  # until the heap has grown as far as it will
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of a tensor of 48 MiB that is made twelve times."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if "no glibc" in done.stderr:
        pytest.skip("malloc is not glibc's")
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts glibc's page faults")
def test_freed_memory_is_reused():
    assert faults("keep") < faults("give back") / 4


def test_threads_and_memory_are_the_profiles(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: calls.append(n))
    monkeypatch.setattr(cpu_runtime, "keep_memory", lambda: calls.append("keep"))
    settings = make_config(".").training
    cpu_runtime.set_up(changed(settings, threads=3, keep_memory=True))
    cpu_runtime.set_up(changed(settings, threads=None, keep_memory=False))
    assert calls == [3, "keep"]


@pytest.mark.parametrize(("capability", "device", "asked", "found"), [
    ("AVX2", "cpu", None, True), ("AVX512", "cpu", None, False), ("AVX2", "cuda", None, False),
    ("AVX512", "cpu", True, True), ("AVX2", "cpu", False, False),
])  # fmt: skip
def test_the_layout_depends_on_the_device_unless_the_profile_sets_it(monkeypatch, capability, device, asked, found):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    settings = changed(make_config(".").training, channels_last=asked)
    assert cpu_runtime.channels_last(settings, torch.device(device)) is found


def test_a_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu_runtime.ctypes, "CDLL", lambda _: object())
    assert cpu_runtime.keep_memory.__wrapped__() is False


def trained(root):
    """A model of a profile that is trained in bfloat16."""
    config = make_config(root, methods={"ResDM": tiny_resdm()}, epochs=1, precision="bf16-mixed")
    torch.manual_seed(0)
    method = build_method(config.method("ResDM"), (16, 16, 16))
    return train(method, config, "ResDM", Sessions(2), collate=collate, progress=False)


def test_synthesis_on_a_cpu_is_in_bfloat16_where_it_computes_in_it(tmp_path, monkeypatch):
    model = trained(tmp_path)
    volumes, types = {}, {}
    for native in (False, True):
        monkeypatch.setattr(prediction, "computes_bf16", lambda native=native: native)
        loaded = Model.load(model)
        seen = types.setdefault(native, set())
        loaded.method.unet.inlet.register_forward_hook(lambda module, inputs, output, seen=seen: seen.add(output.dtype))
        volumes[native] = loaded.synthesise(np.ones((16, 16, 16), np.float32), 70.0, "F", seed=0)
    assert types == {False: {torch.float32}, True: {torch.bfloat16}}
    assert np.abs(volumes[True] - volumes[False]).max() < 0.02
    assert (volumes[True] != volumes[False]).any()
    with changed(loaded, card={"config": {"training": {"precision": "16-mixed"}}})._autocast():
        assert not torch.is_autocast_enabled("cpu")  # float16 never is


def test_emulated_bfloat16_is_warned_of(tmp_path, monkeypatch):
    told = pytest.warns(UserWarning, match=r"ResDM: this CPU emulates bfloat16.*training\.precision: 32-true")
    for native, context in ((True, nullcontext()), (False, told)):
        monkeypatch.setattr(training, "computes_bf16", lambda native=native: native)
        with context:
            trained(tmp_path / str(native))
