"""Real training steps: images a second and the memory peak, to hold the predictions against."""

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

from scalekd.method import Method
from scalekd.planner.fake import inputs
from scalekd.planner.memory import MIB, method_tensors

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measurement:
    """What real steps took.

    Attributes:
        images_per_second: From the median step, data loading left out.
        step_seconds: Every measured step.
        peak_bytes: The memory peak less what the process held besides the method's tensors when `measure` was called.
        how: Where the peak comes from.
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
    """Take one step to warm up and `steps` measured ones on random images, where the method's parameters are.

    The memory peak is of all of them. It compares with `step_memory` in a fresh process only: malloc can reuse what
    earlier work has freed, which then shows in no peak. On the CPU the peak is of resident memory; there, weights
    that were never read or written (mapped files) make it too small.

    Args:
        method: The method; it is trained by this. Gradients must be None.
        batch: Images a step.
        optimizer_factory: Makes the optimiser for student and projectors.
        dtype: The autocast type; float32 switches autocast off.
        steps: Measured steps.
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
    """In the training loop's order, as `step_memory` predicts it: gradients go after the step."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = method(images, labels).total
    total.backward()
    optimizer.step()
    optimizer.zero_grad()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of `work`, until the device has done it."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> str:
    """Forget the memory peak so far, and give freed memory back to the system.

    Returns:
        How `peak_memory` measures from here on.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "torch.cuda.max_memory_allocated after building"
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return "peak resident memory of the process after building (VmHWM)"
    except OSError:
        kind = "VmHWM" if _STATUS.is_file() else "ru_maxrss"
        return f"peak resident memory of the process, building included ({kind})"


def peak_memory(device: torch.device) -> float:
    """The peak since `reset_peak_memory`, in MiB.

    VmHWM rather than ru_maxrss where there is one: Linux lets a child inherit ru_maxrss from its parent.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if _STATUS.is_file():
        return _status("VmHWM") / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def _memory_in_use(device: torch.device) -> int:
    """Bytes in use now; where the system does not say, the peak so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") if _STATUS.is_file() else round(peak_memory(device) * MIB)


def _status(key: str) -> int:
    """A line of /proc/self/status, which is in KiB, in bytes."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
