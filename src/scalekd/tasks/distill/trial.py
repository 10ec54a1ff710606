"""Tries one training step before a run starts, so that failures are reported before anything is written.

On the CPU the step runs in a fork of the process, because some layouts make outside libraries crash.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from scalekd.child import ChildDiedError, ForkError, can_fork, in_child
from scalekd.data import seeded
from scalekd.errors import UserError
from scalekd.hardware import autocast
from scalekd.methods.base import Method
from scalekd.methods.outputs import Losses, StudentOutputs
from scalekd.models import Student
from scalekd.models.failure import ModelError, kind_and_line, naming_model
from scalekd.recipes import Recipe

T = TypeVar("T")

DOING = "be trained on"
_KILLED = "signal 9 "
_ONE_VALUE = "more than 1 value per channel"  # in torch's message of a batch norm


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
    """Check that a pair can take a training step in the layout that it will train in; the pair's values do not change.

    The step uses two images, or one if batch norm normalises each image alone. If it fails, another step uses as many
    images as the run takes at once. On the CPU a step runs in a copy of this process: if a library crashes in the
    channels-last layout, the student is changed to the contiguous layout.

    Args:
        method: The pair, laid out by `prepare`.
        recipe: The run's settings.
        at_once: Images at once.
        together: Images that batch norm normalises together.
        batchnorm: Context in which a forward of `at_once` images runs.
        dtype: The autocast type.
        say: Prints a line.

    Raises:
        UserError: If the step fails; names the model, the images' shape and the first line of the error.
    """
    step = partial(take_step, recipe=recipe, dtype=dtype)
    try:
        in_safe_layout(method, partial(step, size=min(2, together)), dtype=dtype, say=say)
    except ModelError:
        try:
            in_safe_layout(method, partial(step, size=at_once, batchnorm=batchnorm), dtype=dtype, say=say)
        except ModelError as error:
            raise ModelError(f"{error}{_advice(method, error, together)}") from error


def in_safe_layout(
    method: Method, step: Callable[[Method], T], *, dtype: torch.dtype, say: Callable[[str], object]
) -> T | None:
    """Run a step in a copy of this process; if the copy crashes, change the student to the contiguous layout and retry.

    Args:
        method: The pair, laid out by `prepare`.
        step: Forward and backward; it may change its argument.
        dtype: The autocast type, for the message.
        say: Prints a line if the layout is changed.

    Returns:
        The result of the step; None if it took too long, or neither process nor pair can be copied.

    Raises:
        UserError: If the system killed the step for memory, or the process crashes in the contiguous layout too.
    """
    student = _student(method)
    try:
        return _on_copy(method, step)
    except ChildDiedError as death:
        cause = death
    if str(cause).startswith(_KILLED):
        raise UserError(f"memory: the system killed a training step of {student.name}; close other programs")
    student.model.to(memory_format=torch.contiguous_format)
    try:
        answer = _on_copy(method, step)
    except ChildDiedError as death:
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
    """Run a step in a copy of this process, or, if the process cannot be copied, on a copy of the pair."""
    if can_fork(next(method.parameters()).device):
        with suppress(ForkError):
            return in_child(lambda: step(method))
    try:
        # The teacher is frozen and large: the copy shares it.
        shared = [method.teacher, *method.teacher.modules()] if method.teacher is not None else []
        copy = deepcopy(method, {id(part): part for part in shared})
    except Exception:  # a module that cannot be copied shows its errors in the run's first step
        return None
    return step(copy)


def take_step(
    method: Method,
    recipe: Recipe,
    size: int,
    dtype: torch.dtype,
    batchnorm: AbstractContextManager[Any] | None = None,
) -> None:
    """Run forward and backward on random images; changes gradients, batch norm's statistics and any other model state.

    Raises:
        ModelError: If the student's code fails, or no gradient reaches the student.
    """
    student = _student(method.train())
    device = next(method.parameters()).device
    with seeded(recipe.seed):
        images, labels = _random_batch(recipe, size, device)
        with autocast(device, dtype), batchnorm or nullcontext():
            teacher_outputs = method.teacher(images) if method.needs_teacher else None
            outputs = student(images)
            _check(student, outputs, size)
            shape = [size, 3, student.resolution, student.resolution]
            try:
                loss = method.losses(outputs, teacher_outputs, labels).total
            except ValueError as error:
                if _ONE_VALUE not in str(error):
                    raise
                what = f"the projectors of {recipe.method} cannot {DOING} images {shape}: {kind_and_line(error)}"
                raise ModelError(what) from error
        with naming_model("student", student.name, shape, DOING):
            loss.backward()  # type: ignore[no-untyped-call]
    if all(parameter.grad is None for parameter in student.parameters()):
        raise ModelError(
            f"student: {student.name} cannot {DOING} images {shape}: no gradient reaches any of its parameters"
        )


def random_losses(method: Method, recipe: Recipe, dtype: torch.dtype, *, training: bool = False) -> Losses:
    """Return the losses of two random images on the models' device; in training mode, batch norm statistics change."""
    device = next(method.parameters()).device
    with seeded(recipe.seed), autocast(device, dtype):
        losses: Losses = method.train(training)(*_random_batch(recipe, 2, device))
    method.train()
    return losses


def _random_batch(recipe: Recipe, size: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return random images and the labels that the recipe trains on; call it within `seeded`."""
    images = torch.rand(size, 3, recipe.resolution, recipe.resolution, device=device)
    return images, None if recipe.labels == "none" else torch.zeros(size, dtype=torch.long, device=device)


def _check(student: Student, outputs: StudentOutputs, size: int) -> None:
    """Check that a student's outputs have the same shapes in training mode as in evaluation mode."""
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


def _advice(method: Method, error: ModelError, together: int) -> str:
    """Return how to fix a known error, as the end of a message; empty for an unknown one."""
    if _ONE_VALUE in str(error):
        if together == 1:
            return "; batch norm needs two images at once: set batch (and micro_batch, batchnorm_over) to 2 or more"
        if method.feature_share.share < 1:
            return "; features of one image at once are compared, batch norm needs two: raise feature_share or batch"
    if getattr(_student(method).model, "aux_logits", False):
        return (
            "; its auxiliary head is used in training only: raise resolution, or build it without one "
            "(--student-args '{aux_logits: false}')"
        )
    return ""


def _student(method: Method) -> Student:
    assert isinstance(method.student, Student)
    return method.student
