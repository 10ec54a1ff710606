"""Tries one training step on noise before a run of `transfer` starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from scalekd.data import seeded
from scalekd.hardware import Compute, to_device
from scalekd.models.failure import naming_model

B = TypeVar("B")


def try_training(
    model: nn.Module,
    losses: Callable[[nn.Module, B], Mapping[str, Tensor]],
    batch: B,
    *,
    task: str,
    name: str,
    shape: Sequence[int],
    seed: int,
    compute: Compute,
) -> None:
    """Train a copy of a model for one step, so that what cannot be trained fails before a run starts.

    Args:
        model: The model. It and the random state are not changed.
        losses: Computes the losses of a model on a batch by name.
        batch: A batch of noise, on the CPU.
        task: The task's name, for the error.
        name: The model's name, for the error.
        shape: The images' shape, `[B, 3, h, w]`.
        seed: Seed of the run.
        compute: Where and in which number format the model will run.

    Raises:
        ModelError: If the step fails; names the backbone if its forward failed, otherwise the whole model.
    """
    with seeded(seed), naming_model(task, name, shape, "be trained on"):
        trial = copy.deepcopy(model).to(compute.device).train()
        with compute.autocast():
            terms = losses(trial, to_device(batch, compute.device))
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
