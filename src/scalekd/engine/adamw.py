"""AdamW with torch's fused kernel, which is safe only if a parameter and all that belongs to it have one layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

_DEVICES = {"cpu", "cuda", "mps"}  # that have the fused kernel


class AlignedAdamW(AdamW):
    """AdamW that updates all elements of a parameter in one pass over memory.

    The fused kernel pairs the elements of a parameter, its gradient and its moments by their position in memory, not by
    their index. If the memory layouts differ (a channels-last weight with a contiguous gradient, or moments that were
    saved when the weight had another layout), it updates the wrong elements without an error. Before each step,
    gradients and moments that differ are therefore copied into the parameter's layout.

    Args:
        groups: Parameter groups, as for `AdamW`. All parameters must pass `can_be_fused`.
        lr: Learning rate of groups without their own.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._align(parameter)
        return super().step(closure)

    def _align(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None and not _same_layout(parameter, parameter.grad):
            parameter.grad = in_layout_of(parameter, parameter.grad)
        state = self.state.get(parameter, {})
        for name, value in state.items():
            if value.shape == parameter.shape and not _same_layout(parameter, value):
                state[name] = in_layout_of(parameter, value)


def in_layout_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Copy a tensor of the parameter's shape into the parameter's memory layout."""
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _same_layout(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one shape have the same order in memory; axes of one element have no order."""
    if one.stride() == two.stride():
        return True
    axes = zip(one.shape, one.stride(), two.stride(), strict=True)
    return all(size == 1 or first == second for size, first, second in axes)


def can_be_fused(parameter: Tensor) -> bool:
    """Whether the fused kernel may update a parameter: dense memory on a device that has the kernel, not sharded."""
    return parameter.device.type in _DEVICES and not isinstance(parameter, DTensor) and _is_dense(parameter)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor fill one piece of memory without gaps or overlap, in any order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
