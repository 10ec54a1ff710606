"""Predicts the peak memory of a training step without running it, and the largest batch that fits in memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from scalekd.errors import UserError, first_line
from scalekd.methods.base import Method
from scalekd.planner.fake import device_of, has_foreign_code, inputs, run_fake, student_of
from scalekd.planner.tracker import MemoryTracker

MIB = 2**20
# Numbers of tensors of a parameter's size: the optimiser's state, and the temporaries of its step.
OPTIMIZER_STATE = {"adamw": 2, "lamb": 2, "sgd": 1}
_OPTIMIZER_SCRATCH = {"adamw": 2, "lamb": 3, "sgd": 1}
# Measured on the CPU with the pairs of benchmarks/memory.py. KERNEL_BYTES: resident memory beyond the tensors when
# malloc keeps no freed memory (MALLOC_MMAP_THRESHOLD_=131072), probably kernels that oneDNN compiles. HEAP_WASTE: freed
# blocks that glibc keeps in its heap and cannot merge for new allocations; with glibc's defaults 0.2 to 0.4 of the
# heap's live bytes, growing over the first 20 steps.
KERNEL_BYTES = {torch.float32: 25 * MIB, torch.bfloat16: 65 * MIB}
HEAP_WASTE = 0.35


class UnpredictableError(UserError):
    """Raised for an architecture whose memory cannot be predicted."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of an optimiser step.

    Attributes:
        weights: Parameters and buffers of teacher, student, projectors and the moving average.
        gradients: Gradients of student and projectors.
        optimizer: The optimiser's state.
        activations: Everything else that is alive at the peak: images, saved tensors, casts, temporaries.
        overhead: On the CPU, memory that no tensor owns: compiled kernels and freed memory that malloc keeps. 0 on
            other devices.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


def step_memory(
    method: Method,
    *,
    batch: int,
    optimizer: str,
    ema: bool,
    dtype: torch.dtype,
    accumulate: bool = False,
    device: str | None = None,
) -> StepMemory:
    """Predict the peak memory of a training step from the lifetimes of its tensors.

    The step runs on tensors without memory, which takes a few seconds. Gradients are freed after each step, so that
    they exist during a forward only if they are accumulated. The prediction does not include what the process uses
    apart from the method (interpreter, libraries, data loading).

    Args:
        method: The method as it will train: for bf16, `teacher.hold_weights` has been called. It is not changed.
        batch: Images at once.
        optimizer: `adamw`, `lamb` or `sgd`.
        ema: Whether a moving average of the student is kept.
        dtype: The autocast type; float32 switches autocast off.
        accumulate: Whether gradients are summed over several such batches, and thus exist during forward and backward.
        device: Type of the device to predict for, `cpu` or `cuda`. Default: the method's own.

    Raises:
        UnpredictableError: If the architecture cannot run without memory, for example because it reads values of
            tensors.
    """
    device = device or device_of(method).type
    if has_foreign_code(method):  # see `on_copy`
        raise UnpredictableError("memory: is not predicted for models of your own or transformers; pass --micro-batch")
    try:
        tracker = run_fake(method, lambda copy: track(copy, batch, dtype, accumulate, device))
    except Exception as error:  # an unknown architecture may fail in any way on such tensors
        raise UnpredictableError(
            f"memory: cannot be predicted for {student_of(method).name} ({first_line(error)}); pass --micro-batch"
        ) from error
    trained = [p.nbytes for p in method.parameters() if p.requires_grad]
    weights = sum(t.nbytes for t in method_tensors(method))
    # On GPUs the optimiser's step is fused over all parameters, so that all temporaries exist at once.
    scratch = _OPTIMIZER_SCRATCH[optimizer] * (max(trained) if device == "cpu" else sum(trained))
    peak = max(tracker.peak, weights + sum(trained) + scratch)
    return StepMemory(
        weights=weights + (sum(t.nbytes for t in _module_tensors(student_of(method))) if ema else 0),
        gradients=sum(trained),
        optimizer=OPTIMIZER_STATE[optimizer] * sum(trained),
        activations=peak - weights - sum(trained),
        overhead=_overhead(tracker, dtype) if device == "cpu" else 0,
    )


def track(method: Method, batch: int, dtype: torch.dtype, accumulate: bool, device: str) -> MemoryTracker:
    """Track the memory of one forward and backward of a method; the method is changed and must be a copy."""
    images, labels = inputs(method.train(), batch)
    tracker = MemoryTracker(lays_out_weights=device == "cpu")
    with tracker:
        tracker.hold([*method_tensors(method), images, labels])
        for parameter in method.parameters():
            parameter.grad = torch.empty_like(parameter) if accumulate and parameter.requires_grad else None
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = method(images, labels).total
        total.backward()
    return tracker


def _overhead(tracker: MemoryTracker, dtype: torch.dtype) -> int:
    return KERNEL_BYTES[dtype] + round(HEAP_WASTE * tracker.small_peak)


def method_tensors(method: Method) -> list[Tensor]:
    """Return the parameters and buffers of student, projectors and teacher."""
    teacher = [] if method.teacher is None else _module_tensors(method.teacher)
    return _module_tensors(method) + teacher


def held_memory(method: Method, *, optimizer: str, ema: bool) -> int:
    """Return the bytes that student and projectors hold between steps: everything but activations and the teacher."""
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    average = sum(t.nbytes for t in _module_tensors(student_of(method))) if ema else 0
    return sum(t.nbytes for t in _module_tensors(method)) + average + (1 + OPTIMIZER_STATE[optimizer]) * trained


def _module_tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))


def largest_batch(
    method: Method,
    *,
    budget_bytes: int,
    batch: int,
    optimizer: str,
    ema: bool,
    dtype: torch.dtype,
    even: bool = False,
    device: str | None = None,
) -> tuple[int, StepMemory]:
    """Find the largest divisor of the global `batch` whose predicted step fits in `budget_bytes`, and its memory.

    A divisor of 1 is not considered unless `batch` is 1, because batch norm needs two images. With `even`, only even
    divisors are considered, as mixup requires. See `step_memory` for the other arguments.

    Raises:
        UserError: If even the smallest divisor does not fit.
        UnpredictableError: See `step_memory`.
    """

    def needs(size: int) -> StepMemory:
        return step_memory(
            method, batch=size, optimizer=optimizer, ema=ema, dtype=dtype, accumulate=size < batch, device=device
        )

    sizes = [size for size in range(min(2, batch), batch + 1) if batch % size == 0 and not (even and size % 2)]
    whole = needs(batch)
    if whole.total <= budget_bytes:
        return batch, whole
    least = needs(sizes[0])
    if least.total > budget_bytes:
        raise UserError(
            f"memory: {sizes[0]} images at once need {least.total / MIB:.0f} MiB, but {budget_bytes / MIB:.0f} MiB are "
            "available; "
            + (
                f"the batch of {batch} has no smaller divisor, use one with small divisors"
                if sizes[0] > 2
                else "use a smaller teacher or student, or a lower resolution"
            )
        )
    fits, too_large = 0, len(sizes) - 1  # indices in `sizes`
    memory = least
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        tried = needs(sizes[middle])
        if tried.total <= budget_bytes:
            fits, memory = middle, tried
        else:
            too_large = middle
    return sizes[fits], memory


def available_memory(device: torch.device) -> int:
    """Return the bytes that are free for a run on `device`.

    On CUDA this is what the driver reports; on other devices the memory available without swapping, within the limit of
    the process's control group.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [value for value in (_available_of_system(), _available_of_group()) if value is not None]
    return min(free) if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available_of_system() -> int | None:
    """Return `MemAvailable` in bytes; None on systems without /proc/meminfo."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _available_of_group() -> int | None:
    """Return the bytes left in the process's control group (version 2) and its parents; None without a limit.

    A container sees its own group as the root. Cached files count as used in a group but are freed when needed.
    """
    root = Path("/sys/fs/cgroup")
    own = Path("/proc/self/cgroup")
    entries = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    group = root / next((line.removeprefix("0::/") for line in entries if line.startswith("0::/")), "")
    left = []
    for folder in (group, *group.parents):
        try:
            limit = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(encoding="ascii"), re.M)
        except (OSError, ValueError):  # no group, or `max`: no limit
            continue
        left.append(limit - used + (int(cached[1]) if cached else 0))
    return min(left, default=None)
