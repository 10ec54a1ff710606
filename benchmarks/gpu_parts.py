"""The measurements of one pair in the GPU checklist; see gpu.py."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from measurement import MatmulPeak, step_seconds
from pair import Pair, prepare, step
from torch import Tensor

from scalekd import ScaleKD
from scalekd.hardware import autocast
from scalekd.methods.outputs import TeacherOutputs
from scalekd.planner import DEVICES, step_flops
from scalekd.planner.measure import peak_memory, reset_peak_memory, seconds

BF16 = torch.bfloat16
AGREEMENT_BATCH = 16
ROUNDS = 4  # of steps, with a matrix product after each

Record = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Scale:
    """Size of the measurements.

    Attributes:
        batch: Images per step.
        warmup: Steps before the measured ones.
        steps: Measured steps, a multiple of `ROUNDS`.
        matmul_size: Rows of the square matrices whose product gives the peak.
        backend: Backend of `torch.compile`.
    """

    batch: int
    warmup: int
    steps: int
    matmul_size: int
    backend: str


def eager(pair: Pair, scale: Scale, device: torch.device, record: Record) -> None:
    """Measure agreement of bf16 with float32, memory, speed and utilisation, and the cache; pass each to `record`."""
    method = pair.method(device)
    images, labels = pair.batch(scale.batch, device)
    few = min(scale.batch, AGREEMENT_BATCH)
    record("agreement", agreement(method, images[:few], labels[:few]))  # leaves the method ready for bf16
    record("memory", memory(lambda: step(method, images, labels, BF16), device))
    record("speed", speed(method, images, labels, scale))
    record("cache", cache(method, images, labels, scale))


def compiled(pair: Pair, scale: Scale, device: torch.device, record: Record) -> None:
    """Measure the step before and after `method.compile()`."""
    method = pair.method(device)
    prepare(method, BF16)
    images, labels = pair.batch(scale.batch, device)

    def one() -> Tensor:
        return step(method, images, labels, BF16)

    step_seconds(one, scale.warmup, device)
    before, loss = step_seconds(one, scale.steps, device), one().item()
    peak = memory(one, device)["peak_mib"]
    method.compile(backend=scale.backend)
    first = seconds(one, device)
    step_seconds(one, scale.warmup, device)
    after, same = step_seconds(one, scale.steps, device), one().item()
    result = {
        "backend": scale.backend,
        "compile_seconds": first,  # of the first step: forward and backward are compiled in it
        "eager": summary(before, scale.batch),
        "compiled": summary(after, scale.batch),
        "speedup": statistics.median(before) / statistics.median(after),
        "peak_mib": {"eager": peak, "compiled": memory(one, device)["peak_mib"]},
        "loss_difference": abs(same - loss) / abs(loss),
    }
    record("compile", result)


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Return the median, minimum and maximum of the seconds per step, and images per second by the median."""
    median = statistics.median(times)
    return {"seconds": median, "min": min(times), "max": max(times), "images_per_second": batch / median}


def agreement(method: ScaleKD, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare a float32 step (without TF32) with a bf16 step on equal weights: losses and gradients, part by part."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        losses, gradients = outcome(method, images, labels, torch.float32)
    prepare(method, BF16)
    rounded, approximate = outcome(method, images, labels, BF16)
    method.zero_grad(set_to_none=True)
    return {
        "batch": len(images),
        "loss": {name: abs(rounded[name] - value) / abs(value) for name, value in losses.items()},
        "gradient": {
            part: {
                "cosine": F.cosine_similarity(approximate[part], exact, dim=0).item(),
                "norm": ((approximate[part].norm() - exact.norm()) / exact.norm()).item(),
            }
            for part, exact in gradients.items()
        },
    }


def outcome(
    method: ScaleKD, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return loss terms with their total, and gradients of student and projectors, each as one float64 vector."""
    torch.manual_seed(2)  # some students drop paths at random
    method.zero_grad(set_to_none=True)
    with autocast(images.device, dtype):
        losses = method(images, labels)
    losses.total.backward()
    terms = {name: value.item() for name, value in (losses.terms | {"total": losses.total}).items()}
    parts = {"student": method.student, "CAP_prev": method.tpp, "CAP_last": method.last}
    gradients = {}
    for name, part in parts.items():
        assert isinstance(part, torch.nn.Module)
        gradients[name] = torch.cat([p.grad.flatten().double() for p in part.parameters() if p.grad is not None])
    return terms, gradients


def memory(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return the peak memory of two steps, and the memory that was allocated before them."""
    how = reset_peak_memory(device)
    built = peak_memory(device)
    for _ in range(2):
        work()
    return {"built_mib": built, "peak_mib": peak_memory(device), "how": how}


def speed(method: ScaleKD, images: Tensor, labels: Tensor, scale: Scale) -> dict[str, Any]:
    """Measure the seconds per step, and the fraction of the peak that its FLOPs use."""
    times, peak = in_turns({"live": lambda: step(method, images, labels, BF16)}, scale, images.device)
    flops = len(images) * step_flops(method, len(images)).total
    rate = flops / statistics.median(times["live"])
    return summary(times["live"], len(images)) | {
        "flops_per_step": flops,
        "tflops": rate / 1e12,
        "matmul_peak_tflops": peak / 1e12,
        "fraction_of_peak": rate / peak,
        "data_sheet": data_sheet(rate, images.device),
    }


def data_sheet(rate: float, device: torch.device) -> dict[str, Any] | None:
    """Return the fraction of the vendor's peak; None if no data sheet with bf16 is known."""
    words = re.split(r"[^a-z0-9]+", torch.cuda.get_device_name(device).lower()) if device.type == "cuda" else []
    words += [left + right for left, right in pairwise(words)]  # "RTX 4090"
    known = next((DEVICES[word] for word in words if word in DEVICES), None)
    if known is None or known.number_format != "bf16":
        return None
    return {"device": known.name, "peak_tflops": known.peak_flops / 1e12, "fraction": rate / known.peak_flops}


def cache(method: ScaleKD, images: Tensor, labels: Tensor, scale: Scale) -> dict[str, Any]:
    """Compare the step with teacher outputs copied from pinned memory, as from a loader, with the live step."""
    device = images.device
    with autocast(device, BF16):
        outputs = method.teacher(images)
    kept = [part.cpu() for part in outputs]  # every pair here has logits
    if device.type == "cuda":
        kept = [part.pin_memory() for part in kept]

    def cached() -> Tensor:
        tokens, logits = (part.to(device, non_blocking=True) for part in kept)
        return step(method, images, labels, BF16, teacher_outputs=TeacherOutputs(tokens, logits))

    def live() -> Tensor:
        return step(method, images, labels, BF16)

    difference = abs(cached().item() / live().item() - 1)
    times, _ = in_turns({"live": live, "cached": cached}, scale, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "live": summary(times["live"], len(images)),
        "cached": summary(times["cached"], len(images)),
        "speedup": medians["live"] / medians["cached"],
        "bytes_per_image": sum(part.nbytes for part in kept) // len(images),
        "loss_difference": difference,
    }


def in_turns(
    works: Mapping[str, Callable[[], object]], scale: Scale, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each step, in rounds that alternate between `works`, and the bf16 matrix peak in FLOP/s."""
    peak = MatmulPeak(scale.matmul_size, device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        step_seconds(work, scale.warmup, device)
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name] += step_seconds(work, scale.steps // ROUNDS, device)
        peak.sample()
    return times, peak.best()["bf16"] * 1e9
