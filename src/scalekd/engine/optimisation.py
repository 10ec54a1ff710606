"""Build timm optimisers and schedules from a recipe."""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol

from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from scalekd.engine.adamw import AlignedAdamW, can_be_fused
from scalekd.errors import UserError
from scalekd.recipes import OptimizerKeys, Recipe

_CLASS_TOKENS = {"cls_token", "dist_token", "reg_token"}


class LearnerKeys(Protocol):
    """The recipe keys that training steps depend on, for any task."""

    @property
    def seed(self) -> int: ...

    @property
    def clip(self) -> float | None: ...

    @property
    def nonfinite(self) -> Literal["stop", "skip"]: ...


def build_optimizer(recipe: OptimizerKeys, module: nn.Module) -> Optimizer:
    """Build one optimiser for all parameters of a module.

    The kinds of parameters in the recipe's `no_decay` have no weight decay. Parameters that are not part of a method's
    `student` (its projectors) have the learning rate multiplied by the recipe's `projector_lr_scale`, those of the
    student by a power of `layer_decay`.

    Raises:
        UserError: If `layer_decay` is used and the student's layers are not known.
    """
    name = {"sgd": "momentum"}.get(recipe.optimizer, recipe.optimizer)  # timm's sgd is Nesterov's
    options: dict[str, Any] = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    kinds = parameter_kinds(module)
    scale = recipe.used_projector_lr_scale if isinstance(recipe, Recipe) else 1.0
    scales = layer_scales(module, recipe.layer_decay) if isinstance(recipe, Recipe) and recipe.layer_decay < 1 else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad:
            own_scale = scales.get(parameter_name, 1.0) if parameter_name.startswith("student.") else scale
            groups.setdefault((own_scale, kinds[parameter_name] in recipe.no_decay), []).append(parameter)
    # timm's schedules multiply by `lr_scale`. The student's groups come first, because the rate of the first is logged.
    parameters = [
        {"params": group, "lr_scale": own_scale, "weight_decay": 0.0 if spared else recipe.weight_decay}
        for (own_scale, spared), group in sorted(groups.items(), key=lambda item: (item[0][0] != 1, item[0][1]))
    ]
    if name == "adamw" and all(can_be_fused(parameter) for group in groups.values() for parameter in group):
        return AlignedAdamW(parameters, recipe.lr)
    optimizer: Optimizer = create_optimizer_v2(
        parameters, opt=name, lr=recipe.lr, weight_decay=recipe.weight_decay, **options
    )
    return optimizer


def layer_scales(method: nn.Module, decay: float) -> dict[str, float]:
    """Return the learning rate of each of the student's parameters as a multiple of its last layer's, by name.

    Each layer has `decay` times the rate of the layer after it, as is usual for fine-tuning (BEiT, arXiv 2106.08254).

    Args:
        method: The joined pair.
        decay: In (0, 1].

    Raises:
        UserError: If the student does not declare its layers (timm's `group_matcher`).
    """
    prefix = "student.model."
    model = method.get_submodule(prefix.rstrip("."))
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"layer_decay: {type(model).__name__} does not declare its layers (most models of timm do); leave it out"
        )
    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values())
    return {prefix + name: decay ** (last - layer) for name, layer in layers.items()}


def parameter_kinds(module: nn.Module) -> dict[str, str]:
    """Classify parameters as `norm`, `bias`, `position`, `class_token` or `weight`.

    Every one-dimensional scale is `norm`. Positions are CAP's position embeddings and the parameters in timm's
    `no_weight_decay` of an architecture, such as relative-position tables.
    """
    positions = {name for name, _ in module.named_parameters() if name.endswith("pos_embed")}
    for prefix, child in module.named_modules():
        if hasattr(child, "no_weight_decay"):
            positions |= {f"{prefix}.{name}" if prefix else name for name in child.no_weight_decay()}

    def kind(name: str, parameter: nn.Parameter) -> str:
        leaf = name.rpartition(".")[2]
        if leaf in _CLASS_TOKENS:
            return "class_token"
        if name in positions:
            return "position"
        if parameter.ndim > 1:
            return "weight"
        return "bias" if leaf.endswith("bias") else "norm"

    return {name: kind(name, parameter) for name, parameter in module.named_parameters()}


def quieten_timm() -> None:
    """Silence timm's warning that a cosine schedule of one step has no effect: short runs are the user's choice."""
    logging.getLogger("timm.scheduler").setLevel(logging.ERROR)


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Build a timm schedule that is stepped once per optimiser step."""
    warmup = {"warmup_t": recipe.warmup_epochs * steps_per_epoch, "warmup_lr_init": recipe.warmup_lr}
    if recipe.schedule == "cosine":
        steps = (recipe.epochs - recipe.warmup_epochs) * steps_per_epoch  # after the warm-up
        return CosineLRScheduler(
            optimizer, t_initial=steps, lr_min=recipe.min_lr, t_in_epochs=False, warmup_prefix=True, **warmup
        )
    # timm drops one step before a milestone; these drop at the first step of the milestone's epoch.
    milestones = [epoch * steps_per_epoch + 1 for epoch in recipe.milestones]
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, t_in_epochs=False, **warmup)
