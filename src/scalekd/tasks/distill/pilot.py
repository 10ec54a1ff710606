"""Compares a few settings of a recipe in short runs on a part of the training images (`distill --pilot`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from scalekd.data import Split
from scalekd.data.hold_out import hold_out
from scalekd.engine.launcher import launched
from scalekd.engine.learner import NonFiniteLossError
from scalekd.engine.optimisation import build_optimizer
from scalekd.errors import Interrupted, UserError
from scalekd.hardware import pick_compute
from scalekd.methods.outputs import TeacherOutputs
from scalekd.methods.registry import has_key
from scalekd.models.memory_format import prepare
from scalekd.planner.measure import seconds
from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, with_files
from scalekd.tasks.distill.filling import fill_cache
from scalekd.tasks.distill.inputs import read_data
from scalekd.tasks.distill.run import distill

EPOCHS = 4  # of each short run, unless all images are trained on and time is left
VIEWS = 2  # augmentations of each image in the pilot's cache
HELD_OUT = 0.2  # of the images, to measure the accuracy on
FACTORS = (0.25, 1.0, 4.0)  # of the recipe's learning rate
SLOWER_PROJECTORS = 0.25  # of the projectors' learning rate
_TIMED_BATCH, _TIMED_STEPS = 16, 3


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        keys: The recipe keys in which it differs from the recipe.
        top1: Accuracy on the held-out images in percent; None if it failed.
        seconds: Duration of its training.
        failure: Why it failed; empty if it did not.
    """

    keys: dict[str, Any]
    top1: float | None
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Pilot:
    """The short runs of a pilot.

    Attributes:
        train: Number of images that each run was trained on.
        held_out: Number of images that the accuracy was measured on.
        epochs: Passes over the images.
        steps: Optimiser steps of each run.
        trials: The runs; the first has the recipe's own settings.
    """

    train: int
    held_out: int
    epochs: int
    steps: int
    trials: tuple[Trial, ...]

    def error(self, trial: Trial) -> float:
        """Return the standard error of a run's accuracy in points, which counts the chance in the images only."""
        share = (trial.top1 or 0.0) / 100
        return 100 * math.sqrt(share * (1 - share) / self.held_out)

    @property
    def best(self) -> Trial:
        """The run with the highest accuracy; the first of equal ones."""
        return _best(self.trials)

    @property
    def clear(self) -> bool:
        """Whether the best run is above the recipe's own by more than both standard errors together."""
        own, best = self.trials[0], self.best
        if own.top1 is None or best.top1 is None:
            return best is not own
        return best.top1 - own.top1 > math.hypot(self.error(own), self.error(best))


def run_pilot(recipe: Recipe, minutes: float, say: Callable[[str], object] = lambda _line: None) -> Pilot:
    """Train short runs with several learning rates, slower projectors and the lean form, and measure each.

    The runs are trained and measured on parts of the training images; the validation images are not used. They share
    one temporary cache of the teacher's outputs, and leave no files.

    Args:
        recipe: The settings to vary.
        minutes: About how long the pilot may take.
        say: Called with a line when something begins or ends.

    Raises:
        UserError: If the recipe learns without labels, or there is time or data for too few images.
        Interrupted: If a signal stopped it.
    """
    if recipe.labels == "none":
        raise UserError("pilot: compares accuracies, which need labels; leave out --labels none, or --pilot")
    if launched() or recipe.devices > 1:
        raise UserError("pilot: runs in one process; leave out --devices (and torchrun)")
    recipe = with_files(recipe)
    train, val = read_data(recipe)
    say("pilot     measuring the speed of a step")
    plan = _plan(recipe, train, minutes, _measure_costs(recipe, len(val.classes)))
    with TemporaryDirectory(prefix="scalekd-pilot-") as folder:
        short = _shorten(recipe, plan, Path(folder))
        images = hold_out(train, plan.held_out, plan.train, recipe.seed)
        say(
            f"pilot     {plan.train} of {len(train)} training images, {plan.held_out} others to measure on; "
            f"{plan.epochs} epochs, {plan.steps} steps a run"
        )
        try:
            if short.cache is not None:
                fill_cache(short, splits=images, console=Console(quiet=True))
                say(f"pilot     teacher outputs of {plan.train} images x {short.augmented_views} views are cached")
            run = partial(_run, short, images, Path(folder), say)
            trials = [run(keys) for keys in _rates(recipe)]
            best = _best(trials).keys
            trials += [run(best | keys) for keys in _forms(recipe, best)]
        except Interrupted as stop:
            raise Interrupted("pilot: stopped; its runs are deleted", stop.number) from None
    return Pilot(plan.train, plan.held_out, plan.epochs, plan.steps, tuple(trials))


def _best(trials: Iterable[Trial]) -> Trial:
    return max(trials, key=lambda trial: -1.0 if trial.top1 is None else trial.top1)


def _rates(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield the keys of the first runs: the recipe's own learning rate, a lower and a higher one."""
    for factor in sorted(FACTORS, key=lambda factor: factor != 1):
        yield {"lr": float(f"{factor * recipe.lr:.4g}")}


def _forms(recipe: Recipe, best: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the keys that are tried with the best learning rate."""
    if has_key(recipe.method, "projector_lr_scale"):
        scale = recipe.model_copy(update=best).used_projector_lr_scale
        yield {"projector_lr_scale": float(f"{SLOWER_PROJECTORS * scale:.4g}")}
    if has_key(recipe.method, "lean") and _can_be_lean(recipe):
        yield {"lean": True}


def _can_be_lean(recipe: Recipe) -> bool:
    """Whether a recipe has a lean form that differs from it."""
    try:
        return _changed(recipe, {"lean": True}) != recipe
    except UserError:  # it sets keys of CAP
        return False


def _changed(recipe: Recipe, keys: dict[str, Any]) -> Recipe:
    """Return a recipe with other keys, checked as if the user had passed them."""
    return validate(Recipe, recipe.model_dump(exclude_unset=True) | keys)


@dataclass(frozen=True)
class _Costs:
    """Seconds that an image takes in the teacher, and in a step with the teacher's outputs given."""

    teacher: float
    step: float


def _measure_costs(recipe: Recipe, classes: int) -> _Costs:
    """Take a few steps with random weights on random images; the fastest counts."""
    compute = pick_compute(recipe)
    teacher = build_teacher(recipe, pretrained=False, num_classes=classes) if recipe.method != "none" else None
    student = build_student(recipe.model_copy(update={"student_pretrained": False}), classes)
    method = build_method(recipe, teacher, student)
    prepare(method, *compute, channels_last=recipe.channels_last)
    method.to(compute.device).train()
    optimizer = build_optimizer(recipe, method)
    batch = min(recipe.micro_batch or _TIMED_BATCH, recipe.batch)
    images = torch.rand(batch, 3, recipe.resolution, recipe.resolution, device=compute.device)
    labels = torch.zeros(batch, dtype=torch.long, device=compute.device)
    outputs: list[TeacherOutputs | None] = [None]

    def teach() -> None:
        with compute.autocast():
            outputs[0] = method.teach(images) if method.needs_teacher else None

    def step() -> None:
        with compute.autocast():
            total = method(images, labels, outputs[0]).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    times = [(seconds(teach, compute.device), seconds(step, compute.device)) for _ in range(1 + _TIMED_STEPS)]
    return _Costs(*(min(part[1:]) / batch for part in zip(*times, strict=True)))  # the first allocates memory


@dataclass(frozen=True)
class _Plan:
    train: int
    held_out: int
    epochs: int
    steps: int


def _plan(recipe: Recipe, train: Split, minutes: float, costs: _Costs) -> _Plan:
    """Choose the number of images and epochs that fit in the time.

    Raises:
        UserError: If they do not fill a batch.
    """
    budget = 60 * minutes
    runs = len(FACTORS) + len(list(_forms(recipe, {})))
    views, epochs = min(VIEWS, recipe.epochs), min(EPOCHS, recipe.epochs)
    filling = views * costs.teacher
    at_most = len(train) - round(HELD_OUT * len(train))
    images = min(at_most, int(budget / (runs * epochs * costs.step + filling)))
    if images < recipe.batch:
        if at_most < recipe.batch:
            raise UserError(
                f"pilot: of {len(train)} training images, {at_most} remain to train on, fewer than a batch of "
                f"{recipe.batch}; set a smaller --batch"
            )
        needed = recipe.batch * (runs * epochs * costs.step + filling) / 60
        raise UserError(
            f"pilot: in {minutes:g} minutes only {images} images can be trained on, fewer than a batch of "
            f"{recipe.batch}; pass --pilot {math.ceil(needed)} or more, or a smaller --batch"
        )
    if images == at_most:
        epochs = min(recipe.epochs, max(epochs, int((budget - images * filling) / (runs * images * costs.step))))
    held_out = max(1, round(images * HELD_OUT / (1 - HELD_OUT)))
    return _Plan(images, min(held_out, len(train) - images), epochs, epochs * (images // recipe.batch))


def _shorten(recipe: Recipe, plan: _Plan, folder: Path) -> Recipe:
    """Return the recipe of the short runs: the same schedule in fewer epochs, from a temporary cache."""
    part = plan.epochs / recipe.epochs
    changes: dict[str, Any] = {
        "epochs": plan.epochs,
        "validate_every": plan.epochs,
        "warmup_epochs": min(plan.epochs - 1, round(part * recipe.warmup_epochs)),
        "milestones": tuple(max(1, round(part * milestone)) for milestone in recipe.milestones),
        "checkpoint_minutes": None,
        "check_teacher": False,
        "cache": None,
    }
    if recipe.method != "none" and not (recipe.mixup or recipe.cutmix):
        changes |= {"cache": folder / "caches", "augmentation_epochs": min(VIEWS, plan.epochs)}
    return _changed(recipe, changes)


def _run(
    recipe: Recipe,
    images: tuple[Split, Split],
    folder: Path,
    say: Callable[[str], object],
    keys: dict[str, Any],
) -> Trial:
    """Train a short run and delete its files."""
    name = ", ".join(f"{key} {value}" for key, value in keys.items())
    with TemporaryDirectory(dir=folder) as output:
        try:
            result = distill(_changed(recipe, keys), Path(output) / "run", splits=images, console=Console(quiet=True))
        except UserError as error:  # such as a loss that is NaN, or too few images in the lean form's batch norms
            if keys == {"lr": recipe.lr} and not isinstance(error, NonFiniteLossError):
                raise  # the recipe itself is wrong
            say(f"pilot     {name}: failed: {error}")
            return Trial(keys, None, 0.0, str(error))
    say(f"pilot     {name}: top1 {result['top1']:.1f}%")
    return Trial(keys, result["top1"], result["seconds"])
