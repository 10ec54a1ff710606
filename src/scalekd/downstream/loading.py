"""Batches of any task, from workers that are replaced when they die."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scalekd.data import Key
from scalekd.data.loader import leave_stopping_to_the_main_process
from scalekd.data.steady import SteadyLoader


def steady_loader(
    dataset: Dataset[Any],
    order: Sampler[list[Key]],
    collate: Callable[[list[Any]], Any],
    workers: int,
    report: Callable[[str], object],
) -> SteadyLoader[Any, Key]:
    """Batches of a dataset in an order; `report` is told when workers that died are replaced."""

    def load(batches: Iterable[list[Key]]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=leave_stopping_to_the_main_process,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )

    return SteadyLoader(order, load, report)
