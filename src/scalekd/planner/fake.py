"""Runs modules on tensors that have shapes and types but no memory, to count what a step would take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from scalekd.methods.base import Method
from scalekd.models import Student
from scalekd.models.image_model import ImageModel

Module = TypeVar("Module", bound=nn.Module)
Result = TypeVar("Result")


def on_copy(module: Module, run: Callable[[Module], Result], *, real: bool) -> Result:
    """Call `run` with a copy of `module` and return its result; the module itself is not changed.

    By default the copy's tensors have no memory, so that this takes a second even for the largest models. Architectures
    that read values of tensors cannot run like that; they run on a real copy, unless the module was built on the meta
    device.

    Args:
        module: The module.
        run: Called with the copy.
        real: Whether to use a real copy. Needed for the user's own code: it may keep tensors for later (a cache of
            grids, for example), and would otherwise keep tensors without memory.
    """
    if real:
        return run(deepcopy(module))
    try:
        return run_fake(module, run)
    except Exception:  # an unknown architecture may fail in any way on such tensors
        if any(tensor.is_meta for tensor in module.parameters()):
            raise
        return run(deepcopy(module))


def run_fake(module: Module, run: Callable[[Module], Result]) -> Result:
    """Call `run` with a copy of `module` without memory and return its result.

    Tensors that `run` creates have no memory either.

    Raises:
        Exception: Whatever the architecture raises if it cannot run without memory; a RuntimeError if it reads values
            of tensors.
    """
    # torch starts autograd's threads at a process's first backward. If that backward ran on fake tensors, torch would
    # start threads for GPUs that do not exist, and a fork of this process (`scalekd.child`) could not run a backward.
    torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    with _in_silence(), FakeTensorMode(allow_non_fake_inputs=True):
        with _EmptyCopies():
            copy = deepcopy(module)
        return run(copy)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Keep torch from printing the traceback of an exception in fake mode."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's parameters; the CPU for a module built on the meta device."""
    return _device_of(next(module.parameters()))


def student_of(method: Method) -> Student:
    """Return the method's student with its concrete type; the method knows only a protocol."""
    assert isinstance(method.student, Student)
    return method.student


def has_foreign_code(method: Method) -> bool:
    """Return whether student or teacher is neither timm's nor torchvision's; see `on_copy`."""
    return any(isinstance(model, ImageModel) and model.is_foreign for model in (method.student, method.teacher))


def inputs(method: Method, batch: int) -> tuple[Tensor, Tensor]:
    """Return zero images `[batch, 3, side, side]` at the student's resolution and labels `[batch]`, on its device."""
    device, side = device_of(method), student_of(method).resolution
    images = torch.zeros(batch, 3, side, side, device=device)
    return images, torch.zeros(batch, dtype=torch.long, device=device)


def _device_of(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device  # autocast has no meta device


class _EmptyCopies(TorchFunctionMode):
    """Makes `deepcopy` of a tensor return an uninitialised one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._empty(tensor)
            return memo[id(tensor)]
        if func is Tensor.clone:  # how a parameter copies its data
            return self._empty(args[0])
        return func(*args, **(kwargs or {}))

    def _empty(self, tensor: Tensor) -> Tensor:
        """Return an uninitialised tensor of the same shape, strides and type."""
        return torch.empty_like(tensor, device=_device_of(tensor), requires_grad=tensor.requires_grad)
