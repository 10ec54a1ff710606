"""Compares a few settings of a recipe in short runs on a part of the training images (`distill --pilot`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich.console import Console

from scalekd.data import Key, Split
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
from scalekd.recipes import Recipe, load
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, with_files
from scalekd.tasks.distill.filling import fill_cache
from scalekd.tasks.distill.given import Given
from scalekd.tasks.distill.inputs import read_data, training_images
from scalekd.tasks.distill.run import distill
from scalekd.tasks.distill.trial import try_training

EPOCHS = 4  # of each short run, unless all images are trained on and time is left
VIEWS = 2  # augmentations of each image in the pilot's cache
HELD_OUT = 0.2  # of the labelled images, at most, to measure the accuracy on
FACTORS = (0.25, 1.0, 4.0)  # of the recipe's learning rate
SLOWER_PROJECTORS = 0.25  # of the projectors' learning rate
_ENOUGH_HELD = 200  # images to measure on, also if fewer than four times as many are trained on
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
        """Return the standard error of a run's accuracy in points, which counts the chance in the images only.

        One right and one wrong image are added, so that it is not 0 if all are right (Laplace's rule).
        """
        right = (trial.top1 or 0.0) / 100 * self.held_out
        images = self.held_out + 2
        share = (right + 1) / images
        return 100 * math.sqrt(share * (1 - share) / images)

    @property
    def best(self) -> Trial:
        """The run with the highest accuracy; the first of equal ones."""
        return _best(self.trials)

    @property
    def clear(self) -> bool:
        """Whether the best run is above the next best by more than both standard errors together."""
        best = self.best
        following = _best(trial for trial in self.trials if trial is not best)
        if following.top1 is None or best.top1 is None:
            return True
        return best.top1 - following.top1 > math.hypot(self.error(following), self.error(best))


def run_pilot(recipe: Recipe, minutes: float, say: Callable[[str], object] = lambda _line: None) -> Pilot:
    """Train short runs with several learning rates, slower projectors and the lean form, and measure each.

    The runs are trained and measured on parts of the training images; the validation images are not used. They share
    one temporary cache of the teacher's outputs, and leave no files.

    Args:
        recipe: The settings to vary.
        minutes: About how long the pilot may take.
        say: Called with a line when something begins or ends.

    Raises:
        UserError: If the recipe learns without labels or cannot be trained, or there is time or data for too few
            images.
        Interrupted: If a signal stopped it.
    """
    if recipe.labels == "none":
        raise UserError("pilot: compares accuracies, which need labels; leave out --labels none, or --pilot")
    if recipe.multi_label:
        raise UserError("pilot: compares top-1 accuracies, of which several labels per image have none; leave it out")
    if launched() or recipe.devices > 1:
        raise UserError("pilot: runs in one process; leave out --devices (and torchrun)")
    if not math.isfinite(minutes):
        raise UserError(f"pilot: {minutes} is no number of minutes")
    recipe = with_files(recipe)
    train, val = read_data(recipe)
    say("pilot     measuring the speed of a step")
    plan = _plan(recipe, train, minutes, _measure_costs(recipe, train, len(val.classes)))
    images = hold_out(train, plan.kept, plan.held, recipe.seed)
    kept, held = map(len, images)
    steps = plan.epochs * (kept // recipe.batch)
    with TemporaryDirectory(prefix="scalekd-pilot-") as folder:
        short = _shorten(recipe, plan.epochs, Path(folder))
        say(
            f"pilot     {kept} of {len(train)} training images, {held} others to measure on; "
            f"{plan.epochs} epochs, {steps} steps a run"
        )
        try:
            if short.cache is not None:
                fill_cache(short, splits=images, console=Console(quiet=True))
                say(f"pilot     teacher outputs of {kept} images x {short.augmented_views} views are cached")
            run = partial(_run, short, images, Path(folder), say)
            trials = [run(keys, own=not number) for number, keys in enumerate(_rates(recipe))]
            best = _best(trials).keys
            trials += [run(best | keys) for keys in _forms(recipe, best)]
        except Interrupted as stop:
            raise Interrupted("pilot: stopped; its runs are deleted", stop.number) from None
    if all(trial.top1 is None for trial in trials):
        raise UserError(f"pilot: every run failed, the first with: {trials[0].failure}")
    return Pilot(kept, held, plan.epochs, steps, tuple(trials))


def _best(trials: Iterable[Trial]) -> Trial:
    return max(trials, key=lambda trial: -1.0 if trial.top1 is None else trial.top1)


def _rates(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield the keys of the first runs: the recipe's own learning rate, a lower and a higher one."""
    for factor in sorted(FACTORS, key=lambda factor: factor != 1):
        yield {"lr": recipe.lr if factor == 1 else float(f"{factor * recipe.lr:.4g}")}


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
        lean = _changed(recipe, {"lean": True})
    except UserError:  # it sets keys of CAP
        return False
    return lean.model_copy(update={"lean": recipe.lean}) != recipe


def _changed(recipe: Recipe, keys: dict[str, Any]) -> Recipe:
    """Return a recipe with other keys, as if they were passed as flags over it."""
    return load(recipe.model_dump(exclude_unset=True), keys)


class _Costs(NamedTuple):
    """Seconds that an image takes in the teacher, in a step with the teacher's outputs given, and in the loader."""

    teacher: float
    step: float
    loading: float


def _measure_costs(recipe: Recipe, train: Split, classes: int) -> _Costs:
    """Load a few images, and take a few steps with random weights on random images; the fastest step counts.

    Raises:
        UserError: If the pair cannot be trained.
    """
    compute = pick_compute(recipe)
    teacher = None
    if recipe.method != "none":  # logits must be for the data's classes; other heads stay as they are
        teacher = build_teacher(recipe, pretrained=False, num_classes=classes if recipe.used_logit_weight else None)
    student = build_student(recipe.model_copy(update={"student_pretrained": False}), classes)
    method = build_method(recipe, teacher, student)
    prepare(method, *compute, channels_last=recipe.channels_last)
    batch = min(recipe.batch, max(_TIMED_BATCH, math.ceil(2 / recipe.feature_share)))
    try_training(
        method.to(compute.device).train(),
        recipe,
        at_once=batch,
        together=batch,
        batchnorm=nullcontext(),
        dtype=compute.dtype,
        say=lambda _line: None,
    )
    optimizer = build_optimizer(recipe, method)
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
    dataset, count = training_images(recipe, train), min(_TIMED_BATCH, len(train))
    loading = seconds(lambda: [dataset[Key(0, index)] for index in range(count)], torch.device("cpu"))
    taught, stepped = (min(part[1:]) / batch for part in zip(*times, strict=True))  # the first allocates memory
    return _Costs(taught, stepped, loading / count / max(1, recipe.workers))


class _Plan(NamedTuple):
    """Number of images to train on and to measure on, and of epochs."""

    kept: int
    held: int
    epochs: int


def _plan(recipe: Recipe, train: Split, minutes: float, costs: _Costs) -> _Plan:
    """Choose the number of images and epochs that fit in the time.

    Raises:
        UserError: If too few images remain to train on.
    """
    budget, runs = 60 * minutes, len(FACTORS) + len(list(_forms(recipe, {})))
    epochs = min(EPOCHS, recipe.epochs)
    step, filling = max(costs.step, costs.loading), min(VIEWS, epochs) * max(costs.teacher, costs.loading)
    if not _can_be_cached(recipe):
        step, filling = max(costs.step + costs.teacher, costs.loading), 0.0
    held = round(HELD_OUT * (len(train) - train.unlabelled))
    if not held:
        raise UserError(f"pilot: only {len(train) - train.unlabelled} training images have a label; too few to measure")
    at_most = len(train) - held
    if at_most < recipe.batch:
        raise UserError(
            f"pilot: of {len(train)} training images, {at_most} remain to train on, fewer than a batch of "
            f"{recipe.batch}; set a smaller --batch"
        )
    affordable = int(budget / (runs * epochs * step + filling))
    if affordable < recipe.batch:
        needed = recipe.batch * (runs * epochs * step + filling) / 60
        raise UserError(
            f"pilot: in {minutes:g} minutes only {affordable} images can be trained on, fewer than a batch of "
            f"{recipe.batch}; pass --pilot {math.ceil(needed)} or more, or a smaller --batch"
        )
    if affordable >= at_most:
        longer = int((budget - at_most * filling) / (runs * at_most * step))
        return _Plan(at_most, held, min(recipe.epochs, max(epochs, longer)))
    return _Plan(affordable, min(held, max(_ENOUGH_HELD, affordable // 4)), epochs)


def _can_be_cached(recipe: Recipe) -> bool:
    return recipe.method != "none" and not (recipe.mixup or recipe.cutmix)


def _shorten(recipe: Recipe, epochs: int, folder: Path) -> Recipe:
    """Return the recipe of the short runs: the same schedule in fewer epochs, from a temporary cache."""
    part = epochs / recipe.epochs
    changes: dict[str, Any] = {
        "epochs": epochs,
        "validate_every": epochs,
        "warmup_epochs": min(epochs - 1, round(part * recipe.warmup_epochs)),
        "milestones": [max(1, round(part * milestone)) for milestone in recipe.milestones],
        "checkpoint_minutes": None,
        "check_teacher": False,
        "cache": None,
        "logger": "none",
        "ema": None,  # the average of so few steps is mostly the initial weights
    }
    if _can_be_cached(recipe):
        changes |= {"cache": folder / "caches", "augmentation_epochs": min(VIEWS, epochs)}
    return _changed(recipe, changes)


def _run(
    recipe: Recipe,
    images: tuple[Split, Split],
    folder: Path,
    say: Callable[[str], object],
    keys: dict[str, Any],
    *,
    own: bool = False,
) -> Trial:
    """Train a short run and delete its files.

    Args:
        recipe: The recipe of the short runs.
        images: Images to train on, and to measure on.
        folder: Where to put the files.
        say: Called with the result.
        keys: Keys to change.
        own: Whether these are the recipe's own settings, so that an error means that the recipe is wrong.

    Raises:
        UserError: If the recipe is wrong.
    """
    name = ", ".join(f"{key} {value}" for key, value in keys.items())
    with TemporaryDirectory(dir=folder) as output:
        try:
            result = distill(
                _changed(recipe, keys), Path(output) / "run", given=Given(splits=images), console=Console(quiet=True)
            )
        except UserError as error:  # such as a loss that is NaN, or a form that the student's maps do not allow
            if own and not isinstance(error, NonFiniteLossError):
                raise
            say(f"pilot     {name}: failed: {error}")
            return Trial(keys, None, 0.0, str(error))
    say(f"pilot     {name}: top1 {result['top1']:.1f}%")
    return Trial(keys, result["top1"], result["seconds"])
