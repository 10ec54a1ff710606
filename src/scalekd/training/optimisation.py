"""timm's optimisers and schedules from a recipe."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from scalekd.recipes import Recipe


def build_optimizer(recipe: Recipe, module: nn.Module) -> Optimizer:
    """One optimiser for student and projectors.

    Norms, biases, position embeddings and what the student's architecture names (timm's `no_weight_decay`) do not
    decay, unless the recipe sets `decay_all`.
    """
    name = {"sgd": "momentum"}.get(recipe.optimizer, recipe.optimizer)  # timm's sgd is Nesterov's
    options: dict[str, Any] = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    parameters: Any = [p for p in module.parameters() if p.requires_grad]
    if recipe.weight_decay and not recipe.decay_all:
        parameters = param_groups_weight_decay(module, recipe.weight_decay, no_weight_decay_list=undecayed(module))
    optimizer: Optimizer = create_optimizer_v2(
        parameters, opt=name, lr=recipe.lr, weight_decay=recipe.weight_decay, **options
    )
    return optimizer


def undecayed(module: nn.Module) -> set[str]:
    """Names of parameters with more than one axis that are not to decay."""
    names = {name for name, _ in module.named_parameters() if name.endswith("pos_embed")}
    for prefix, child in module.named_modules():
        if hasattr(child, "no_weight_decay"):
            names |= {f"{prefix}.{name}" for name in child.no_weight_decay()}
    return names


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """A timm schedule that is stepped once an optimiser step."""
    warmup = {"warmup_t": recipe.warmup_epochs * steps_per_epoch, "warmup_lr_init": recipe.warmup_lr}
    if recipe.schedule == "cosine":
        steps = (recipe.epochs - recipe.warmup_epochs) * steps_per_epoch  # after the warm-up
        return CosineLRScheduler(
            optimizer, t_initial=steps, lr_min=recipe.min_lr, t_in_epochs=False, warmup_prefix=True, **warmup
        )
    # timm drops one step before a milestone; these drop at the first step of the milestone's epoch.
    milestones = [epoch * steps_per_epoch + 1 for epoch in recipe.milestones]
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, t_in_epochs=False, **warmup)
