"""From recipes to all that a run needs, with the checks that can be made before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_lightning import seed_everything
from rich.console import Console
from torch import Tensor, nn

from scalekd.data import CorruptImages, evaluation_loader
from scalekd.data.cache import TeacherCache, open_cache
from scalekd.errors import UserError, printable
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.method import Method
from scalekd.models import Teacher
from scalekd.models.layout import prepare
from scalekd.planner import USABLE, UnpredictableError, available_memory, held_memory, largest_batch
from scalekd.recipes import Recipe
from scalekd.training.build import build_method, build_student, build_teacher, describe, head_width
from scalekd.training.caching import compare_sample, describe_cache
from scalekd.training.folder import weight_hashes
from scalekd.training.group import Group, naming
from scalekd.training.inputs import evaluation_images, read_data, training_images


@dataclass
class Setup:
    """The parts of a run, of one student or of several, in the order in which they come to be; then it can be trained.

    Recipes differ in `student` only.
    """

    recipes: list[Recipe]
    group: Group
    console: Console

    @property
    def recipe(self) -> Recipe:
        """What all share."""
        return self.recipes[0]

    def build(self) -> None:
        """Read the data's listing and build the pairs; touches no file of the run."""
        recipe = self.recipe
        self.train, self.val = read_data(recipe)
        self.classes = self.val.classes
        self.device = pick_device(recipe.accelerator)
        self.dtype = pick_dtype(recipe.precision, self.device)
        if recipe.batch > len(self.train):
            raise UserError(
                f"batch: {recipe.batch} is larger than the {len(self.train)} training images; "
                f"set it to {len(self.train)} or less"
            )
        self.steps = len(self.train) // recipe.batch
        self.corrupt = CorruptImages(
            recipe.max_corrupt, partial(self.console.print, highlight=False, soft_wrap=True, markup=False)
        )
        self.teacher = build_teacher(recipe, self.classes) if recipe.method != "none" else None
        self.cache = None
        if self.teacher is not None and recipe.cache is not None:
            wanted = describe_cache(recipe, self.teacher, self.train, self.dtype)
            self.cache = open_cache(recipe.cache, *wanted, recipe.augmented_views)
        self.methods = [self._join(*named) for named in zip(self.recipes, self.group.names, strict=True)]
        self.measured = len(self.val) > 0 and self.methods[0].student.num_classes > 0
        for method in self.methods:
            prepare(method, self.device, self.dtype, channels_last=recipe.channels_last)
        at_once = recipe.micro_batch or self._fitting_batch()
        # Part of the recipes, for the runs are to be repeatable.
        self.recipes = [recipe.model_copy(update={"micro_batch": at_once}) for recipe in self.recipes]
        self.accumulate = recipe.batch // at_once
        validation = evaluation_images(recipe, self.val)
        self.val_loader = evaluation_loader(validation, at_once, recipe.workers, self.say)

    def _join(self, recipe: Recipe, name: str) -> Method:
        """A student and its method, with the random weights that they would have alone."""
        with naming(name):
            # Seeded here and again below, so that all methods start from the same student.
            seed_everything(recipe.seed, verbose=False)
            student = build_student(recipe, head_width(recipe, self.teacher, self.classes))
            seed_everything(recipe.seed, verbose=False)
            return build_method(recipe, self.teacher, student)

    def _fitting_batch(self) -> int:
        """As many images of the batch as fit into the device's memory at once, whichever student's turn it is."""
        recipe = self.recipe
        free = available_memory(self.device)  # before the methods move there, which is part of the prediction
        held = [
            held_memory(method.to(self.device), optimizer=recipe.optimizer, ema=recipe.ema is not None)
            for method in self.methods
        ]
        sizes = []
        for method, own, name in zip(self.methods, held, self.group.names, strict=True):
            try:
                with naming(name):
                    size = largest_batch(
                        method,
                        budget_bytes=round(USABLE * free) - (sum(held) - own),
                        batch=recipe.batch,
                        optimizer=recipe.optimizer,
                        ema=recipe.ema is not None,
                        dtype=self.dtype,
                        even=recipe.mixup > 0 or recipe.cutmix > 0,
                    )
            except UnpredictableError as error:
                self.say(f"warning: {error}; taking the whole batch of {recipe.batch} at once")
                size = recipe.batch
            sizes.append(size)
        return min(sizes)

    def say(self, text: str) -> None:
        """Print text as it is, file names with brackets included."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def announce(self) -> None:
        """Print the plan, and measure the teacher where it has the data's classes."""
        for method in self.methods:
            self.say(describe(method))
        number = "bf16" if self.dtype == torch.bfloat16 else "float32"
        recipe = self.recipe
        unlabelled = f" ({self.train.unlabelled} without label)" if self.train.unlabelled else ""
        rest = len(self.train) % recipe.batch
        if rest:
            self.say(f"data      {rest} training images are left out of each epoch: they do not fill a batch")
        self.say(
            f"data      {len(self.train)} training images{unlabelled} and {len(self.val)} validation images, "
            f"{len(self.classes)} classes; {self.device.type}, {number}"
        )
        if self.accumulate > 1:
            self.say(
                f"batch     {recipe.batch} as {self.accumulate} times {recipe.micro_batch} images at once; batch norm "
                "sees these: compare runs of equal micro_batch"
            )
            if recipe.method == "dist":
                self.say("warning: dist's intra-class relation is over the images at once, not over the batch")
        if not self.measured:
            self.say("accuracy  not measured: " + ("no validation images" if not len(self.val) else "no head to train"))
        if self.cache is not None:
            self.say(self._check_cache(self.cache))
        self.teacher_accuracy = None
        if self.measured and self.teacher is not None and self.teacher.num_classes == len(self.classes):
            self.teacher_accuracy = self._check_teacher(self.teacher)
            self.say(f"teacher   top1 {self.teacher_accuracy.top1:.2f}% on the validation images")

    def _check_cache(self, cache: TeacherCache) -> str:
        """Compare a sample of the cache with the teacher; a line that says how they agree."""
        assert self.teacher is not None
        agreement = compare_sample(
            cache,
            training_images(self.recipe, self.train),
            self.teacher.to(self.device),
            views=self.recipe.augmented_views,
            batch=self.recipe.batch // self.accumulate,
            device=self.device,
        )
        views = self.recipe.augmented_views
        return (
            f"cache     teacher outputs from {printable(cache.path)} ({cache.layout.cache_format}, {views} view(s), "
            f"{agreement})"
        )

    def _check_teacher(self, teacher: Teacher) -> Accuracy:
        """Measure the teacher on the validation images; near chance is an error."""
        accuracy = self.measure(lambda images: teacher(images).logits, teacher.to(self.device))
        chance = 100 / len(self.classes)
        needs_logits = self.methods[0].logit_weight > 0 and self.recipe.check_teacher
        if needs_logits and accuracy.top1 < chance + 0.1 * (100 - chance):
            raise UserError(
                f"teacher: {teacher.name} scores {accuracy.top1:.1f}% on {self.val.root}, "
                f"where chance is {chance:.1f}%; its classes are probably "
                "in another order or its head was never trained (see `scalekd adapt`). "
                "--no-check-teacher goes on all the same"
            )
        return accuracy

    def measure(self, logits: Callable[[Tensor], Tensor], model: nn.Module) -> Accuracy:
        """Accuracy on the validation images of `logits`, which reads `model`."""
        assert not model.training
        return measure_accuracy(
            logits,
            watched(self.val_loader, "measure", self.console),
            num_classes=len(self.classes),
            device=self.device,
            autocast=partial(autocast, self.device, self.dtype),
            corrupt=self.corrupt,
        )

    def inputs(self) -> list[dict[str, Any]]:
        """What each run reads: the listing of each split, the hashes of local weights, rounded teacher outputs."""
        common: dict[str, Any] = {"training data": self.train.fingerprint, "validation data": self.val.fingerprint}
        if self.cache is not None and not self.cache.layout.exact:
            common["teacher outputs"] = f"from a cache, as {self.recipe.cache_format}"
        return [common | weight_hashes(recipe) for recipe in self.recipes]
