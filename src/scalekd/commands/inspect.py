"""`scalekd inspect`: join a pair with random weights, and predict or measure the cost of training it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import typer

from scalekd.data.cache.store import size
from scalekd.engine.optimisation import build_optimizer
from scalekd.errors import UserError
from scalekd.hardware import pick_device, pick_dtype
from scalekd.methods.base import Method
from scalekd.methods.registry import LEAN, has_key
from scalekd.methods.scalekd import ScaleKD
from scalekd.models import Student, Teacher
from scalekd.models.memory_format import prepare
from scalekd.planner import Device, Estimate, UnpredictableError, estimate, find_device, measure, step_memory
from scalekd.planner.cost import StepFlops, step_flops
from scalekd.planner.hours import GIB
from scalekd.planner.storage import Storage, storage
from scalekd.planner.this_machine import this_machine
from scalekd.progress import working
from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.tasks.distill.build import build_method, build_student, build_teacher
from scalekd.tasks.distill.describing import describe_pair

_MEASURED_BATCH = 8


def run(
    settings: Recipe,
    *,
    num_classes: int | None,
    hours: bool,
    device: str,
    peak: float | None,
    utilisation: float,
    images: int,
    measured: bool,
    as_json: bool,
) -> None:
    """Print the plan of a pair; see the command for the arguments."""
    dtype, target = _target(device, settings.precision, peak)
    # Measured first, with its own copy of the pair: predictions may change the state of the user's own code.
    with working("measuring a few steps"):
        outcome = _measure(settings, num_classes) if measured else None
        leaner = lean_form(settings)
        lean_outcome = _measure(leaner, num_classes) if measured and leaner else None
    with working("planning: building the pair, counting its operations and memory"):
        method = _join(settings, num_classes, torch.device(target.kind), dtype)
        costs = estimate(
            method,
            batch=settings.batch,
            micro_batch=settings.micro_batch,
            optimizer=settings.optimizer,
            ema=settings.ema is not None,
            dtype=dtype,
            device=target,
            utilisation=utilisation,
            images=images,
            epochs=settings.epochs,
            share=settings.stored_share,
        )
        lean = _lean(leaner, method, dtype, images) if leaner else None
    if as_json:
        more = {"lean": asdict(lean) | ({"measured": lean_outcome} if lean_outcome else {})} if lean else {}
        typer.echo(json.dumps(_as_dict(method, costs) | more | ({"measured": outcome} if outcome else {})))
        return
    typer.echo(describe_pair(method))
    typer.echo(str(costs))
    if lean:
        typer.echo(f"lean      {lean}")
    if method.teacher is not None:
        typer.echo(f"advice    {_advice(costs.flops, lean)}")
    if hours:
        what = "GPU-hours" if target.kind == "cuda" else "Hours"
        typer.echo(f"\n{what} on {target.article}\n{costs.hours.arithmetic()}")
    for name, found in (("measured", outcome), ("--lean", lean_outcome)):
        if found:
            typer.echo(f"{name:<10}{_describe(found)}")


def _describe(measured: dict[str, Any]) -> str:
    """Format a measurement, human-readable."""
    predicted = ""
    if measured["predicted_bytes"]:
        share = measured["predicted_bytes"] / measured["peak_bytes"]
        predicted = f", predicted {measured['predicted_bytes'] / GIB:.2f} ({share:.2f} of it)"
    return (
        f"{measured['batch']} images at once on this {measured['device']} in {measured['dtype']}, teacher live: "
        f"{measured['images_per_second']:.2f} images per second; peak {measured['peak_bytes'] / GIB:.2f} GiB{predicted}"
    )


def _advice(flops: StepFlops, lean: Lean | None) -> str:
    """Say what the teacher costs in steps of training alone, and where to read whether it pays."""
    cached = f"{(flops.total - flops.teacher) / flops.student:.2f} with a cached teacher"
    leaner = "" if lean is None else f", {lean.flops_cached / flops.student:.2f} in the lean form from a cache"
    return (
        f"by its FLOPs, a step is worth {flops.total / flops.student:.2f} steps on labels only ({cached}{leaner}); by "
        "its time it may be more (--measure). When that pays: docs/choose.md"
    )


def _target(name: str, precision: str, peak: float | None) -> tuple[torch.dtype, Device]:
    """Return the autocast type and the device to plan for.

    Raises:
        UserError: If the device's peak in that type is not known.
    """
    if name.lower() == "here":
        dtype = pick_dtype(precision, pick_device("auto"))
        target = this_machine(dtype)
    else:
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        target = find_device(name)
        if peak is None and dtype == torch.float32:
            raise UserError("peak: data sheets are known for bf16 only; pass the float32 peak in TFLOP/s with --peak")
    return dtype, target if peak is None else replace(target, peak_flops=peak * 1e12)


def _join(settings: Recipe, num_classes: int | None, device: torch.device, dtype: torch.dtype) -> Method:
    """Build the recipe's pair with random weights, as it would train on `device` under autocast to `dtype`."""
    if settings.student is None:
        raise UserError("student: none is given; pass TEACHER and STUDENT, or a recipe that names them")
    teacher = None
    if settings.method != "none":
        teacher = build_teacher(settings, pretrained=False, num_classes=num_classes)
    classes = num_classes or (teacher.num_classes if teacher is not None else 0) or 1000
    student = build_student(settings.model_copy(update={"student_pretrained": False}), classes)
    method = build_method(settings, teacher, student)
    prepare(method, device, dtype, channels_last=settings.channels_last)
    return method


@dataclass(frozen=True)
class Lean:
    """Costs of the same pair with `--lean`: FLOPs of a step for one image, in all and with a cached teacher, and disk.

    `str(lean)` is human-readable.
    """

    flops_total: int
    flops_cached: int
    cache: Storage

    def __str__(self) -> str:
        keys = ", ".join(f"{key} {value}" for key, value in LEAN.items())
        return (
            f"--lean ({keys}) takes {self.flops_total / 1e9:.4g} GFLOP "
            f"per image, {self.flops_cached / 1e9:.4g} with a cached teacher, and {size(self.cache.bf16)} of cache per "
            "image and view; it may cost accuracy (docs/method.md)"
        )


def lean_form(settings: Recipe) -> Recipe | None:
    """Return the recipe in the lean form; None if it is not exact or cannot be lean."""
    exact = all(getattr(settings, key) == Recipe.model_fields[key].default for key in LEAN)
    if not exact or not has_key(settings.method, "lean"):
        return None
    try:
        return validate(Recipe, settings.model_dump() | LEAN | {"lean": True})
    except UserError:  # another key does not go with it
        return None


def _lean(settings: Recipe, pair: Method, dtype: torch.dtype, images: int) -> Lean:
    """Return the cost of a pair in the lean form."""
    teacher, student = pair.teacher, pair.student
    assert isinstance(teacher, Teacher)
    assert isinstance(student, Student)
    flops = step_flops(build_method(settings, teacher, student))
    cache = storage(teacher, images, dtype, settings.stored_share)
    return Lean(flops.total, flops.total - flops.teacher, cache)


def _measure(settings: Recipe, num_classes: int | None) -> dict[str, Any]:
    """Measure a few steps on this machine, and predict their memory."""
    device = pick_device("auto")
    dtype = pick_dtype(settings.precision, device)
    batch = min(settings.micro_batch or _MEASURED_BATCH, settings.batch)
    method = _join(settings, num_classes, device, dtype).to(device)
    real = measure(method, batch=batch, optimizer_factory=partial(build_optimizer, settings), dtype=dtype)
    method.zero_grad()
    try:
        predicted = step_memory(method, batch=batch, optimizer=settings.optimizer, ema=False, dtype=dtype).total
    except UnpredictableError:
        predicted = None
    return {
        "batch": batch,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "images_per_second": real.images_per_second,
        "step_seconds": real.step_seconds,
        "peak_bytes": real.peak_bytes,
        "predicted_bytes": predicted,
        "how": real.how,
    }


def _as_dict(method: Method, costs: Estimate) -> dict[str, Any]:
    plan = method.plan if isinstance(method, ScaleKD) else None
    joined = {} if plan is None else asdict(plan) | {"parameters": plan.parameters}
    totals = {
        "flops_total": costs.flops.total,
        "memory_total": None if costs.memory is None else costs.memory.total,
        "images_per_second": costs.hours.images_per_second,
        "gpu_hours": costs.hours.hours,
        "cache_total": None if costs.cache is None else costs.cache.images * costs.cache.bf16,
    }
    return joined | {"costs": asdict(costs) | totals}
