"""Measurements in addition to a method's time and memory: the machine's peak, FLOPs, a description of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalekd.environment import describe_environment
from scalekd.planner.measure import seconds
from scalekd.planner.memory import MIB

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


class MatmulPeak:
    """Best rate of a large square matrix product in float32 and bf16, sampled between other work.

    Args:
        size: Rows of the square matrices.
        device: Where to multiply.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.products = 20 if device.type == "cuda" else 1  # a sample must outlast the clock's and launches' noise
        self.rates: dict[str, list[float]] = {name: [] for name in DTYPES}
        for name in DTYPES:
            self._rate(name)  # the first one also sets up the library

    def sample(self) -> None:
        """Take one more sample of each type."""
        for name, rates in self.rates.items():
            rates.append(self._rate(name))

    def best(self) -> dict[str, float]:
        """Return the best GFLOP/s of each type."""
        return {name: max(rates) / 1e9 for name, rates in self.rates.items()}

    def _rate(self, name: str) -> float:
        left, right = (torch.randn(self.size, self.size, device=self.device).to(DTYPES[name]) for _ in range(2))
        out = torch.empty_like(left)

        def multiply() -> None:
            for _ in range(self.products):
                torch.mm(left, right, out=out)

        return self.products * 2 * self.size**3 / seconds(multiply, self.device)


def count_flops(step: Callable[[], object]) -> int:
    """Count the FLOPs of matrix products and convolutions in `step`, forward and backward, 2 per multiply-add.

    Attention is counted as its separate products: torch counts nothing for its fused form on CPU, and what a fused
    form computes twice to save memory is not part of the method.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def step_seconds(work: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `steps` calls of `work`.

    On CUDA, they are measured between events on the stream: the host may run ahead from one step to the next, as it
    does in training.
    """
    if device.type != "cuda":
        return [seconds(work, device) for _ in range(steps)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def profile(work: Callable[[], object], device: torch.device) -> str:
    """Profile `work`; return a table of its operations, sorted by the time that each takes itself."""
    with torch.profiler.profile() as profiler:
        work()
    column = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=column, row_limit=20, max_name_column_width=50))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware, settings and versions that affect the numbers."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "gpu_memory_mib": gpu.total_memory // MIB if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if gpu else None,
        **describe_environment(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
