"""Seconds, memory and kernels of work on a device: what the other benchmarks measure with."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def title(device: torch.device) -> str:
    """What it is, and what drives it: `NVIDIA H100 80GB HBM3, torch 2.11.0+cu130, Python 3.12.3`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def seconds(device: torch.device, call: Callable[[], Any], times: int = 1) -> float:
    """Of one call, of `times` in a row; on CUDA between events, with nothing else under way."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / times


def peak_mib(device: torch.device, call: Callable[[], Any]) -> float:
    """MiB above what stood before, at the worst moment of a call: of the device's allocator, or resident."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory would be used again, and count for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resident = _resident("VmRSS")
    call()
    return max(0.0, _resident("VmHWM") - resident)


def _resident(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def kernels(device: torch.device, call: Callable[[], Any]) -> int | None:
    """How many kernels a call launches on CUDA, copies and fills not counted; None elsewhere."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    launched = [event for event in profiled.events() or () if event.device_type == DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in launched)
