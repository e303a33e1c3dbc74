"""Settings of the CPU: threads, freed memory, layout of volumes, bfloat16."""

from __future__ import annotations

import ctypes
import resource
import sys
from functools import cache

import torch

from resdm.settings import TrainingConfig

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def set_up(settings: TrainingConfig) -> None:
    """Apply ``training.threads`` and ``training.keep_memory`` to this process."""
    if settings.threads is not None:  # sums of another number of threads differ in their last bits
        torch.set_num_threads(settings.threads)
    if settings.keep_memory:
        keep_memory()


@cache
def keep_memory() -> bool:
    """Keep freed memory in this process for later tensors; returns whether malloc is glibc's and took the setting.

    By default glibc returns a large tensor's pages to the system, which clears new ones for the next tensor: at 64³ a
    fifth of a training step, and half of the released network's. Values stay the same; memory may grow by a tenth.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_MMAP_MAX, 0))


def channels_last(settings: TrainingConfig, device: torch.device) -> bool:
    """Whether the networks use ``channels_last_3d``: ``training.channels_last``, by default on AVX2 CPUs only.

    With AVX2, oneDNN's 3D convolutions are up to twice as fast in this layout. With AVX-512 the phantoms' grid loses a
    tenth. ``ATEN_CPU_CAPABILITY=avx2`` counts as AVX2.
    """
    if settings.channels_last is not None:
        return settings.channels_last
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def on_this_machine(device: str) -> str:
    """The device in words: the GPU, or the CPU with its vector instructions and torch's threads."""
    if device == "cuda":
        return f"on this {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"on this CPU ({torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)})"


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: allocated on the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def computes_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16, AMX); others emulate it, a hundred times slower."""
    return torch.cpu._is_avx512_bf16_supported()
