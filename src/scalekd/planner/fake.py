"""Copies of modules whose tensors have shapes and types but no memory, to run a step for its book-keeping alone."""

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

from scalekd.method import Method
from scalekd.models import Student

Module = TypeVar("Module", bound=nn.Module)
Result = TypeVar("Result")


def on_copy(module: Module, run: Callable[[Module], Result], *, real: bool) -> Result:
    """What `run` gives for a copy of `module`, whose own weights, gradients and statistics stay as they are.

    The copy has no memory, so that this takes a second for the largest models, unless `real` is set: code of the user's
    may keep tensors for later (a cache of grids, say), and would then keep such ones. Architectures that read values of
    tensors cannot run like that; they run on a real copy, unless the module was built on the meta device.
    """
    if real:
        return run(deepcopy(module))
    try:
        return run_fake(module, run)
    except Exception:  # whatever a foreign architecture does with such tensors
        if any(tensor.is_meta for tensor in module.parameters()):
            raise
        return run(deepcopy(module))


def run_fake(module: Module, run: Callable[[Module], Result]) -> Result:
    """What `run` gives for a copy of `module` without memory; tensors that `run` makes have no memory either.

    Raises:
        Exception: What the architecture raises where it cannot run like that; a RuntimeError if it reads values of
            tensors.
    """
    # torch starts autograd's threads at a process's first backward: begun without memory, also those of GPUs that are
    # not there, and a copy of the process (`scalekd.child`) could run no backward any more.
    torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    with _in_silence(), FakeTensorMode(allow_non_fake_inputs=True):
        with _EmptyCopies():
            copy = deepcopy(module)
        return run(copy)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Keep torch from printing the traceback of what an architecture raises."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def device_of(module: nn.Module) -> torch.device:
    """Where a step of `module` would run: its parameters' device, the CPU for one built on the meta device."""
    return _device_of(next(module.parameters()))


def student_of(method: Method) -> Student:
    """The method's student, which the method itself knows as a protocol only."""
    assert isinstance(method.student, Student)
    return method.student


def inputs(method: Method, batch: int) -> tuple[Tensor, Tensor]:
    """Blank images `[batch, 3, side, side]` at the student's resolution and labels `[batch]`, where `method` runs."""
    device, side = device_of(method), student_of(method).resolution
    images = torch.zeros(batch, 3, side, side, device=device)
    return images, torch.zeros(batch, dtype=torch.long, device=device)


def _device_of(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device  # meta tensors know no autocast


class _EmptyCopies(TorchFunctionMode):
    """Makes `deepcopy` of a tensor give an empty one."""

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
        """Same shape, strides and type."""
        return torch.empty_like(tensor, device=_device_of(tensor), requires_grad=tensor.requires_grad)
