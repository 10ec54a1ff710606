"""Runs, from a recipe to a folder with each trained student."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from rich.console import Console
from torch import Tensor, nn

from scalekd.data import (
    CorruptImages,
    ReplayDataset,
    TrainingStream,
    evaluation_loader,
    evaluation_transform,
    training_loader,
)
from scalekd.data.cache import CacheReader, TeacherCache, open_cache
from scalekd.errors import UserError
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, keep_freed_memory, pick_device, pick_dtype
from scalekd.method import Method
from scalekd.models import Teacher
from scalekd.models.layout import prepare
from scalekd.models.weights import file_hash
from scalekd.planner import USABLE, UnpredictableError, available_memory, held_memory, largest_batch
from scalekd.recipes import Recipe
from scalekd.training.build import build_method, build_student, build_teacher, describe, head_width
from scalekd.training.caching import compare_sample, describe_cache
from scalekd.training.callbacks import DataClock, Display, Keeper
from scalekd.training.folder import weight_hashes, write_json
from scalekd.training.group import Group, naming
from scalekd.training.inputs import read_data, training_images
from scalekd.training.learner import Learner
from scalekd.training.logs import quieten_lightning
from scalekd.training.module import DistillationModule


def distill(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a student as the recipe says.

    Args:
        recipe: The run's settings, `data` and `student` among them.
        output: Folder for everything the run leaves (see `RunFolder`).
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Returns:
        What `result.json` holds: accuracies, the weights' hash, time and samples.

    Raises:
        UserError: For any wrong input.
        Interrupted: If the user stopped the run; the checkpoint is written.
    """
    return _distill([recipe], Group(output), resume, overwrite, console)[0]


def distill_students(
    recipe: Recipe,
    students: Sequence[str],
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Train several students beside each other, with one forward of the teacher a batch; each as it would be alone.

    Args:
        recipe: The settings of all; its `student` is not read.
        students: Two or more, each as the recipe's `student`.
        output: Folder for a run folder each and their common checkpoint (see `Group`).
        resume: Whether to go on with the group in `output`.
        overwrite: Whether to delete what is in `output`.
        console: Where to print; standard error by default.

    Returns:
        By the name of its folder, what `result.json` of each holds.

    Raises:
        UserError: For any wrong input.
        Interrupted: If the user stopped the runs; the checkpoint is written.
    """
    group = Group(output, students)
    recipes = [recipe.model_copy(update={"student": student}) for student in students]
    return dict(zip(group.names, _distill(recipes, group, resume, overwrite, console), strict=True))


def _distill(
    recipes: list[Recipe], group: Group, resume: bool, overwrite: bool, console: Console | None
) -> list[dict[str, Any]]:
    quieten_lightning()
    if resume and recipes[0].micro_batch is None:  # what fitted when the run was started
        at_once = {"micro_batch": group.stored_keys().get("micro_batch")}
        recipes = [recipe.model_copy(update=at_once) for recipe in recipes]
    run = _Run(recipes, group, console or Console(stderr=True))
    group.check(recipes, resume=resume, overwrite=overwrite)
    run.build()
    run.announce()
    group.prepare(run.recipes, run.inputs(), resume=resume)  # last: what cannot start must not delete another run
    return run.fit(resume and group.checkpoint.is_file())


@dataclass
class _Run:
    """The parts of a run, of one student or of several, in the order in which they come to be.

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
        validation = ReplayDataset(self.val, evaluation_transform(recipe.resolution, recipe.crop_fraction))
        self.val_loader = evaluation_loader(validation, at_once, recipe.workers)

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
            f"cache     teacher outputs from {cache.path} ({cache.layout.cache_format}, {views} view(s), {agreement})"
        )

    def _check_teacher(self, teacher: Teacher) -> Accuracy:
        """Measure the teacher on the validation images; near chance is an error."""
        accuracy = self._measure(lambda images: teacher(images).logits, teacher.to(self.device))
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

    def _measure(self, logits: Callable[[Tensor], Tensor], model: nn.Module) -> Accuracy:
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

    def fit(self, resume: bool) -> list[dict[str, Any]]:
        """Train, validate, and write the results."""
        recipe, checkpoint = self.recipe, self.group.checkpoint
        step = _read_step(checkpoint) if resume else 0
        for folder in self.group.runs:
            folder.trim_metrics(step)
        stream = TrainingStream(
            size=len(self.train),
            batch=recipe.batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            accumulate=self.accumulate,
            start=step * self.accumulate,
            views=recipe.augmented_views,
        )
        dataset = training_images(recipe, self.train, None if self.cache is None else CacheReader(self.cache))
        keep_freed_memory()
        for method in self.methods if recipe.compile else ():
            method.compile()
        learners = [
            Learner(*parts) for parts in zip(self.recipes, self.methods, self.group.runs, self.group.names, strict=True)
        ]
        module = DistillationModule(
            learners, steps_per_epoch=self.steps, accumulate=self.accumulate, corrupt=self.corrupt
        )
        trainer = self._trainer(learners)
        started = time.perf_counter()
        trainer.fit(
            module,
            training_loader(dataset, stream, recipe.workers),
            self.val_loader if self.measured else None,
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
        seconds = round(time.perf_counter() - started, 1)
        return [self._conclude(learner, module.step, seconds) for learner in learners]

    def _conclude(self, learner: Learner, steps: int, seconds: float) -> dict[str, Any]:
        """Write the result of a student."""
        recipe, folder, accuracies = self.recipe, learner.folder, learner.accuracies
        assert folder is not None
        if not self.measured:
            learner.save(self.classes, None)
        elif not accuracies:  # resumed after its last step
            student = learner.eval().to(self.device).final_student
            measured = self._measure(lambda images: student(images).logits, student)
            accuracies = {"top1": measured.top1} | ({} if measured.top5 is None else {"top5": measured.top5})
            learner.save(self.classes, measured.top1)
        result = {
            "method": recipe.method,
            "top1": None,
            **accuracies,
            "teacher_top1": None if self.teacher_accuracy is None else self.teacher_accuracy.top1,
            "samples": steps * recipe.batch,
            "steps": steps,
            "seconds_since_start_or_resume": seconds,
            "corrupt_images": sorted(self.corrupt.paths),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "student": folder.student.name,
            "sha256": file_hash(folder.student),
            **({"group": self.group.students} if self.group.students else {}),
        }
        write_json(folder.result, result)
        return result

    def _trainer(self, learners: Sequence[Learner]) -> Trainer:
        recipe, alone = self.recipe, len(learners) == 1  # several optimise themselves, see `DistillationModule`
        interval = self.steps * self.accumulate * recipe.validate_every
        clock = DataClock()
        return Trainer(
            accelerator=self.device.type,
            devices=1,
            accumulate_grad_batches=self.accumulate if alone else 1,
            precision="bf16-mixed" if self.dtype == torch.bfloat16 else "32-true",
            # The whole run is one stream of batches (see TrainingStream): Lightning counts steps, not epochs.
            max_steps=self.steps * recipe.epochs * len(learners),
            max_epochs=-1,
            val_check_interval=interval if self.measured else None,
            limit_val_batches=None if self.measured else 0,
            sync_batchnorm=recipe.sync_batchnorm,
            check_val_every_n_epoch=None,
            gradient_clip_val=recipe.clip if alone else None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=[logger for learner in learners for logger in learner.loggers],
            callbacks=[
                Display(
                    self.console,
                    clock,
                    batch=recipe.batch,
                    steps_per_epoch=self.steps,
                    epochs=recipe.epochs,
                    interval=None if self.measured else interval,
                ),
                Keeper(self.group, self.classes, interval=interval, validates=self.measured),
            ],
            profiler=clock,
            default_root_dir=self.group.path,
        )


def _read_step(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was written at; Lightning counts those of every optimiser."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(content["global_step"]) // len(content["optimizer_states"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error
