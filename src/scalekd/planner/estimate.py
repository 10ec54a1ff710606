"""Combines all predictions for a pair into one estimate with a human-readable table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scalekd.methods.base import Method
from scalekd.methods.share import FeatureShare
from scalekd.planner.cost import ModelCost, StepFlops, model_cost, step_flops
from scalekd.planner.fake import has_foreign_code, student_of
from scalekd.planner.hours import GIB, Device, Hours, gpu_hours
from scalekd.planner.memory import StepMemory, largest_batch, step_memory
from scalekd.planner.storage import Storage, storage

# Share of a device's memory that a step may use; the rest is for the driver and fragmentation.
USABLE = 0.9


@dataclass(frozen=True)
class Estimate:
    """Costs of training a pair on a device. `str(estimate)` is a human-readable table.

    Attributes:
        teacher: Parameters and multiply-accumulates of the teacher; None for a method without a teacher.
        student: Parameters and multiply-accumulates of the student.
        flops: FLOPs of a training step for one image, by part.
        batch: Global batch.
        micro_batch: Images at once: the largest divisor of the batch that fits in memory; None if it is not predicted.
        memory: Predicted peak at that many images; None for a student in the user's own code.
        device: The device.
        hours: Images per second and hours on one such device, with their factors.
        cache: Size of a teacher cache; None for a method without a teacher.
    """

    teacher: ModelCost | None
    student: ModelCost
    flops: StepFlops
    batch: int
    micro_batch: int | None
    memory: StepMemory | None
    device: Device
    hours: Hours
    cache: Storage | None

    def __str__(self) -> str:
        costs = {"teacher": self.teacher, "student": self.student}
        macs = ", ".join(f"{name} {_macs(cost)}" for name, cost in costs.items() if cost is not None)
        parts = {"teacher": self.flops.teacher, "student": self.flops.student, "CAP": self.flops.cap}
        parts |= {"tail": self.flops.tail}
        flops = " + ".join(f"{name} {value / 1e9:.4g}" for name, value in parts.items() if value)
        counted = ""
        if self.flops.torch_counter != self.flops.total:
            counted = (
                f" (torch's counter gives {self.flops.torch_counter / 1e9:.4g}: it counts the weight gradient of "
                "grouped convolutions as if they were dense)"
            )
        cache = []
        if self.cache is not None:
            left = (self.flops.total - self.flops.teacher) / 1e9
            cache = [f"cache     {self.cache}; a step with a cached teacher takes {left:.4g} GFLOP per image"]
        return "\n".join(
            (
                f"MACs      per image, forward: {macs}",
                f"FLOPs     per image, training step: {flops} = {self.flops.total / 1e9:.4g} GFLOP{counted}",
                self._memory_line(),
                f"speed     {self.hours.images_per_second:,.0f} images per second, assuming "
                f"{self.hours.utilisation:.0%} of the device's peak",
                *cache,
            )
        )

    def _memory_line(self) -> str:
        if self.memory is None or self.micro_batch is None:
            return "memory    not predicted for models of your own or transformers; --measure measures it"
        names = ("weights", "gradients", "optimizer", "activations", "overhead")
        parts = {name: getattr(self.memory, name) for name in names}
        spent = " + ".join(f"{name} {value / GIB:.3g}" for name, value in parts.items() if value)
        times = self.batch // self.micro_batch
        at_once = f"all {self.batch} images of the batch"
        if times > 1:
            at_once = f"{self.micro_batch} images at once, {times} times for the batch of {self.batch}"
        return (
            f"memory    {at_once}: {spent} = {self.memory.total / GIB:.3g} of the "
            f"{self.device.memory_bytes / GIB:.0f} GiB of {self.device.article}"
        )


def _macs(cost: ModelCost) -> str:
    without = ""
    if cost.macs_without_attention != cost.macs:
        without = f" ({cost.macs_without_attention / 1e9:.4g} without attention's products)"
    return f"{cost.macs / 1e9:.4g} G{without}"


def estimate(
    method: Method,
    *,
    batch: int,
    micro_batch: int | None,
    optimizer: str,
    ema: bool,
    dtype: torch.dtype,
    device: Device,
    utilisation: float,
    images: int,
    epochs: int,
    share: FeatureShare,
) -> Estimate:
    """Estimate the cost of training a pair without running a real step.

    Args:
        method: The joined pair, as it will train.
        batch: Global batch.
        micro_batch: Images at once. Default: as many as fit in the device's memory.
        optimizer: `adamw`, `lamb` or `sgd`.
        ema: Whether a moving average of the student is kept.
        dtype: The autocast type.
        device: Device to predict for.
        utilisation: Fraction of the device's peak that the run is assumed to reach, in (0, 1].
        images: Images per epoch.
        epochs: Number of epochs.
        share: The images whose tokens a cache holds.

    Raises:
        UserError: If a factor is out of range, or even the smallest micro-batch does not fit in memory.
    """
    flops = step_flops(method)
    hours = gpu_hours(flops.total, images, epochs, device.peak_flops, utilisation)
    memory = None
    if not has_foreign_code(method):
        settings: dict[str, Any] = {"optimizer": optimizer, "ema": ema, "dtype": dtype, "device": device.kind}
        if micro_batch is None:
            budget = round(USABLE * device.memory_bytes)
            micro_batch, memory = largest_batch(method, budget_bytes=budget, batch=batch, **settings)
        else:
            memory = step_memory(method, batch=micro_batch, accumulate=micro_batch < batch, **settings)
    return Estimate(
        teacher=None if method.teacher is None else model_cost(method.teacher),
        student=model_cost(student_of(method)),
        flops=flops,
        batch=batch,
        micro_batch=micro_batch,
        memory=memory,
        device=device,
        hours=hours,
        cache=None if method.teacher is None else storage(method.teacher, images, dtype, share),
    )
