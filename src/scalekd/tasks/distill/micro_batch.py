"""Finds how many images of the batch fit in memory at once."""

from __future__ import annotations

from collections.abc import Sequence

from scalekd.engine.processes import Processes
from scalekd.hardware import Compute
from scalekd.methods.base import Method
from scalekd.planner import USABLE, UnpredictableError, available_memory, held_memory, largest_batch
from scalekd.recipes import Recipe
from scalekd.runs.group import naming


def fitting_micro_batch(
    recipes: Sequence[Recipe],
    methods: Sequence[Method],
    names: Sequence[str],
    processes: Processes,
    compute: Compute,
) -> tuple[int, tuple[str, ...]]:
    """Return the largest part of this process's share of the batch that fits in memory for every student.

    Args:
        recipes: The settings of each student.
        methods: The pair of each student; it is moved to the device.
        names: The name of each student in messages.
        processes: The processes that share the batch.
        compute: The device whose memory is used, and the autocast type.

    Returns:
        The number of images, and a warning for each student whose memory cannot be predicted.
    """
    recipe, share = recipes[0], recipes[0].batch // processes.count
    free = available_memory(
        compute.device
    )  # before the methods are moved to the device, because the prediction includes them
    if compute.device.type == "cpu":
        free //= processes.local_count
    ema = recipe.ema is not None
    held = [held_memory(method.to(compute.device), optimizer=recipe.optimizer, ema=ema) for method in methods]
    sizes, notes = [], []
    for method, own, name in zip(methods, held, names, strict=True):
        try:
            with naming(name):
                size, _ = largest_batch(
                    method,
                    budget_bytes=round(USABLE * free) - (sum(held) - own),
                    batch=share,
                    optimizer=recipe.optimizer,
                    ema=ema,
                    dtype=compute.dtype,
                    even=recipe.mixup > 0 or recipe.cutmix > 0,
                )
        except UnpredictableError as error:
            notes.append(f"warning: {error}; taking the whole batch of {share} at once")
            size = share
        sizes.append(size)
    return _joinable(min(sizes), share, recipe.batchnorm_over, processes.count), tuple(notes)


def _joinable(most: int, share: int, over: int | str, count: int) -> int:
    """Return the largest part of `share`, at most `most`, from which batch norm can take groups of `over` images."""
    if not isinstance(over, int):
        return most
    sizes = [n for n in range(over, most + 1, over) if share % n == 0]
    return max(sizes, default=over // count if over % count == 0 and over // count <= most else most)
