"""Takes real training steps to measure images per second and peak memory, to compare with the predictions."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekd.methods.base import Method
from scalekd.planner.fake import inputs
from scalekd.planner.memory import MIB, method_tensors

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measurement:
    """Speed and peak memory of real steps.

    Attributes:
        images_per_second: Images per second at the median step, without data loading.
        step_seconds: Duration of each measured step.
        peak_bytes: Peak memory minus what the process used, apart from the method's tensors, before `measure`.
        how: How the peak was measured.
    """

    images_per_second: float
    step_seconds: tuple[float, ...]
    peak_bytes: int
    how: str


def measure(
    method: Method,
    *,
    batch: int,
    optimizer_factory: Callable[[nn.Module], Optimizer],
    dtype: torch.dtype,
    steps: int = 3,
) -> Measurement:
    """Measure `steps` training steps on random images, after one warm-up step, on the method's device.

    The peak memory covers all steps. It is comparable with `step_memory` in a fresh process only: malloc may reuse
    memory that earlier work freed, which does not raise the peak. On the CPU the peak is of resident memory; weights
    that were never read or written (memory-mapped files) make it too small.

    Args:
        method: The method. The steps train it. Its gradients must be None.
        batch: Images per step.
        optimizer_factory: Creates the optimiser for student and projectors.
        dtype: The autocast type; float32 switches autocast off.
        steps: Number of measured steps.
    """
    images, labels = inputs(method.train(), batch)
    device = images.device
    images.uniform_()
    how = reset_peak_memory(device)
    besides = _memory_in_use(device) - sum(t.nbytes for t in [*method_tensors(method), images, labels])
    optimizer = optimizer_factory(method)
    times = [seconds(lambda: _step(method, optimizer, images, labels, dtype), device) for _ in range(1 + steps)][1:]
    return Measurement(
        images_per_second=batch / statistics.median(times),
        step_seconds=tuple(times),
        peak_bytes=round(peak_memory(device) * MIB) - besides,
        how=how,
    )


def _step(method: Method, optimizer: Optimizer, images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    """Take one step in the order of the training loop, which `step_memory` assumes: gradients are freed after it."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = method(images, labels).total
    total.backward()
    optimizer.step()
    optimizer.zero_grad()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock seconds of `work`, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> str:
    """Reset the memory peak and return freed memory to the system.

    Returns:
        A description of what `peak_memory` measures from now on.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "torch.cuda.max_memory_allocated after building"
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in glibc, not in musl
        if trim is not None:
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return "peak resident memory of the process after building (VmHWM)"
    except OSError:
        kind = "VmHWM" if _STATUS.is_file() else "ru_maxrss"
        return f"peak resident memory of the process, building included ({kind})"


def peak_memory(device: torch.device) -> float:
    """Return the memory peak since `reset_peak_memory`, in MiB.

    Uses VmHWM instead of ru_maxrss on Linux, where a child process inherits ru_maxrss from its parent.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if _STATUS.is_file():
        return _status("VmHWM") / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def _memory_in_use(device: torch.device) -> int:
    """Return the bytes in use now; on systems that do not report them, the peak so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") if _STATUS.is_file() else round(peak_memory(device) * MIB)


def _status(key: str) -> int:
    """Read a value of /proc/self/status, which is in KiB, and return it in bytes."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
