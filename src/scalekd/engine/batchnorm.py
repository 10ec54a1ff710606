"""Batch norm statistics over a set number of images, independent of micro-batch size and number of processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scalekd.engine.processes import Processes
from scalekd.errors import UserError
from scalekd.recipes import Recipe

_SIGNATURE = signature(F.batch_norm)


class _Sum(torch.autograd.Function):
    """Sums a tensor over all processes, and likewise its gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        dist.all_reduce(total := values.clone())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        dist.all_reduce(total := gradient.clone())
        return total


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


class BatchNormOver(TorchFunctionMode):
    """Changes the images over which `torch.nn.functional.batch_norm` computes its statistics in training mode.

    It applies to every call within the context, whichever module makes it. Modules and their state are not changed.
    Running statistics are equal in all processes.

    Args:
        processes: The processes of the run.
        groups: Number of equal parts into which the images of a process are cut, each with its own statistics.
        across: Whether the statistics are over the images of all processes instead; `groups` is then 1.
    """

    def __init__(self, processes: Processes, *, groups: int = 1, across: bool = False) -> None:
        super().__init__()
        self.processes, self.groups, self.across = processes, groups, across
        # For each call, until the forward ends: running mean and variance, momentum, statistics `[groups, 2, C]`.
        self._pending: list[tuple[Tensor, Tensor, float, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        call = _SIGNATURE.bind(*args, **(kwargs or {}))
        call.apply_defaults()
        if not call.arguments["training"]:
            return func(*args, **(kwargs or {}))
        return (self._over_all if self.across else self._over_groups)(**call.arguments)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        pending, self._pending = self._pending, []
        if pending and error[0] is None:
            self._update(pending)

    def _over_groups(self, *, input: Tensor, **settings: Any) -> Tensor:  # noqa: A002 (torch's name)
        mean, var, momentum = settings["running_mean"], settings["running_var"], settings["momentum"]
        outputs, statistics = [], []
        for part in input.chunk(self.groups):
            if mean is not None and self.processes.count > 1:
                # Kept until the other processes' statistics are known. With momentum 1, batch_norm writes the group's
                # own statistics into these tensors.
                statistics.append(torch.zeros(2, *mean.shape, dtype=mean.dtype, device=mean.device))
                own = {"running_mean": statistics[-1][0], "running_var": statistics[-1][1], "momentum": 1.0}
                settings = settings | own
            outputs.append(F.batch_norm(part, **settings))
        if statistics:
            self._pending.append((mean, var, momentum, torch.stack(statistics)))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _over_all(
        self,
        *,
        input: Tensor,  # noqa: A002 (torch's name)
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
        training: bool,
    ) -> Tensor:
        """Apply batch norm over all processes in float32, with the variance computed from centred values."""
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        number = x.numel() // x.shape[1] * self.processes.count
        mean = _sum(x.sum(axes)) / number
        centred = x - mean.view(shape)
        var = _sum(centred.square().sum(axes)) / number
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * (number / (number - 1))).to(running_var.dtype), momentum)
        scale = torch.rsqrt(var + eps) * (1 if weight is None else weight)
        y = centred * scale.view(shape)
        return (y if bias is None else y + bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update(self, pending: list[tuple[Tensor, Tensor, float, Tensor]]) -> None:
        """Update the running statistics with those of every group, in image order, using a single all-gather."""
        own = torch.cat([statistics.flatten() for *_, statistics in pending])
        dist.all_gather(everyone := [torch.empty_like(own) for _ in range(self.processes.count)], own)
        sizes = [statistics.numel() for *_, statistics in pending]
        for process in everyone:
            for (mean, var, momentum, like), flat in zip(pending, torch.split(process, sizes), strict=True):
                for group_mean, group_var in flat.view_as(like):
                    mean.lerp_(group_mean, momentum)
                    var.lerp_(group_var, momentum)


def batchnorm_over(recipe: Recipe, processes: Processes, micro_batch: int) -> AbstractContextManager[Any]:
    """Return the context for training forwards that implements the recipe's `batchnorm_over`.

    It does nothing if batch norm already has the right statistics.

    Args:
        recipe: The run's settings.
        processes: The processes of the run.
        micro_batch: Images of a micro-batch in one process.

    Raises:
        UserError: If `batchnorm_over` does not fit the micro-batch, or the recipe compiles the step.
    """
    over, count = recipe.batchnorm_over, processes.count
    if over == "process" or (over == "all" and count == 1):
        return nullcontext()
    across = over in ("all", micro_batch * count) and count > 1
    if not across and (not isinstance(over, int) or micro_batch % over):
        whole = f" or is {micro_batch * count}" if count > 1 else ""
        raise UserError(
            f"batchnorm_over: {over} images cannot be put together from micro-batches of {micro_batch} in each of "
            f"{count} process(es); use a number that divides {micro_batch}{whole}, or another micro_batch"
        )
    groups = 1 if across else micro_batch // int(over)
    if groups == count == 1:
        return nullcontext()
    if recipe.compile:
        raise UserError("compile: cannot be combined with batchnorm_over; remove one of them")
    return BatchNormOver(processes, groups=groups, across=across)
