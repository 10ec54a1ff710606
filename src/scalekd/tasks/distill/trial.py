"""One training step tried before a run begins: what fails in training mode only is told before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import torch

from scalekd.child import DeathError, ForkError, can_fork, in_child
from scalekd.data import seeded
from scalekd.errors import UserError
from scalekd.hardware import autocast
from scalekd.method import Method, StudentOutputs
from scalekd.models import Student
from scalekd.models.failure import ModelError, naming_model
from scalekd.recipes import Recipe

T = TypeVar("T")

DOING = "be trained on"
_KILLED = "signal 9 "


def try_training(
    method: Method,
    recipe: Recipe,
    *,
    at_once: int,
    together: int,
    batchnorm: AbstractContextManager[Any],
    dtype: torch.dtype,
    say: Callable[[str], object],
) -> None:
    """Make sure that a pair can take a training step, laid out as it will train; leave it as it was.

    It is tried on two images, or on one where batch norm never sees more; if that fails, on as many as the run takes at
    once. On the CPU the step is taken in a copy of this process: where an outside library ends that in the
    channels-last layout, the student is laid out contiguously instead.

    Args:
        method: The pair, laid out by `prepare`.
        recipe: The run's settings.
        at_once: Images at once.
        together: Images that batch norm sees together.
        batchnorm: What a forward of `at_once` images runs in.
        dtype: The autocast type.
        say: Prints a line.

    Raises:
        UserError: If the step fails; names the model, the images' shape and the error's first line.
    """
    step = partial(take_step, recipe=recipe, dtype=dtype)
    try:
        in_safe_layout(method, partial(step, size=min(2, together)), dtype=dtype, say=say)
    except ModelError:
        try:
            in_safe_layout(method, partial(step, size=at_once, batchnorm=batchnorm), dtype=dtype, say=say)
        except ModelError as error:
            raise ModelError(f"{error}{_mend(_student(method), error, together)}") from error


def in_safe_layout(
    method: Method, step: Callable[[Method], T], *, dtype: torch.dtype, say: Callable[[str], object]
) -> T | None:
    """What a step gives in a copy of this process; a student whose layout ends the copy is laid out contiguously.

    Args:
        method: The pair, laid out by `prepare`.
        step: Forward and backward; it may change its argument.
        dtype: The autocast type, for the message.
        say: Prints a line where the layout is changed.

    Returns:
        The answer; None where the step took too long, or where nothing can be copied.

    Raises:
        UserError: If the step ends the process in the contiguous layout too.
    """
    student = _student(method)
    try:
        return _on_copy(method, step)
    except DeathError as death:
        cause = death
    if str(cause).startswith(_KILLED):
        raise UserError(f"memory: the system ended a training step of {student.name}; close other programs")
    student.model.to(memory_format=torch.contiguous_format)
    try:
        answer = _on_copy(method, step)
    except DeathError as death:
        number, other = ("bf16", "float32") if dtype == torch.bfloat16 else ("float32", "bf16")
        raise UserError(
            f"student: a training step of {student.name} in {number} ends its process on this machine ({death}), "
            f"whatever its memory layout; try --precision {other} or another student"
        ) from None
    say(
        f"layout    a training step of {student.name} in the channels-last layout ends its process on this machine "
        f"({cause}); it trains in the contiguous layout instead"
    )
    return answer


def _on_copy(method: Method, step: Callable[[Method], T]) -> T | None:
    """What a step gives, in a copy of this process or at least of the pair."""
    if can_fork(next(method.parameters()).device):
        with suppress(ForkError):
            return in_child(lambda: step(method))
    try:
        # The teacher is frozen and large: the copy has the same.
        shared = [method.teacher, *method.teacher.modules()] if method.teacher is not None else []
        copy = deepcopy(method, {id(part): part for part in shared})
    except Exception:  # a module that cannot be copied is tried by its first step
        return None
    return step(copy)


def take_step(
    method: Method,
    recipe: Recipe,
    size: int,
    dtype: torch.dtype,
    batchnorm: AbstractContextManager[Any] | None = None,
) -> None:
    """Forward and backward of random images; changes gradients, batch norm's statistics and whatever a model keeps.

    Raises:
        ModelError: If the student's own code fails, or no gradient reaches it.
    """
    student, side = _student(method.train()), recipe.resolution
    device = next(method.parameters()).device
    with seeded(recipe.seed):
        images = torch.rand(size, 3, side, side, device=device)
        labels = None if recipe.labels == "none" else torch.zeros(size, dtype=torch.long, device=device)
        with autocast(device, dtype), batchnorm or nullcontext():
            taught = method.teacher(images) if method.needs_teacher else None
            outputs = student(images)
            _check(student, outputs, size)
            total = method.losses(outputs, taught, labels).total
        shape = [size, 3, student.resolution, student.resolution]
        with naming_model("student", student.name, shape, DOING):
            total.backward()  # type: ignore[no-untyped-call]
    if all(parameter.grad is None for parameter in student.parameters()):
        raise ModelError(
            f"student: {student.name} cannot {DOING} images {shape}: no gradient reaches any of its parameters"
        )


def _check(student: Student, outputs: StudentOutputs, size: int) -> None:
    """Make sure that a student gives in training mode what it gave in evaluation mode."""
    found = {"S_prev": outputs.previous, "S_last": outputs.last, "logits": outputs.logits}
    wanted: dict[str, list[int]] = {
        name: [size, shape.channels, shape.height, shape.width]
        for name, shape in zip(("S_prev", "S_last"), student.maps, strict=True)
    }
    if student.num_classes:
        wanted["logits"] = [size, student.num_classes]
    for name, shape in wanted.items():
        value = found[name]
        given = list(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        if given != shape:
            raise ModelError(f"student: {student.name} in training mode gives {given} as {name}, not {shape}")


def _mend(student: Student, error: ModelError, together: int) -> str:
    """What helps, where that is known."""
    if together == 1 and "more than 1 value per channel" in str(error):
        return "; batch norm needs two images at once: set batch (and micro_batch, batchnorm_over) to 2 or more"
    if getattr(student.model, "aux_logits", False):
        return (
            "; its auxiliary head is used in training only: raise resolution, or build it without one "
            "(--student-args '{aux_logits: false}')"
        )
    return ""


def _student(method: Method) -> Student:
    assert isinstance(method.student, Student)
    return method.student
