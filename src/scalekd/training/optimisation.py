"""timm's optimisers and schedules from a recipe."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from scalekd.recipes import Recipe


def build_optimizer(recipe: Recipe, module: nn.Module) -> Optimizer:
    """One optimiser for student and projectors."""
    options: dict[str, Any] = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    optimizer: Optimizer = create_optimizer_v2(
        module,
        opt=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_all,
        **options,
    )
    return optimizer


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> Any:
    """A timm schedule that is stepped once an optimiser step."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine" if recipe.schedule == "cosine" else "multistep",
        num_epochs=recipe.epochs,
        decay_milestones=list(recipe.milestones),
        decay_rate=0.1,
        min_lr=recipe.min_lr,
        warmup_lr=recipe.warmup_lr,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule
