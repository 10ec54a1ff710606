"""One run, from a recipe to a folder with the trained student."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn

from scalekd.data import (
    CorruptImages,
    ReplayDataset,
    Split,
    TrainingStream,
    evaluation_loader,
    evaluation_transform,
    read_label_free,
    read_splits,
    read_unlabelled,
    training_loader,
    training_transform,
)
from scalekd.errors import UserError
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.models import Teacher
from scalekd.models.weights import file_hash
from scalekd.planner import USABLE, UnpredictableError, available_memory, largest_batch
from scalekd.recipes import Recipe
from scalekd.training.build import build_method, build_student, build_teacher, describe, head_width
from scalekd.training.callbacks import DataClock, Display, Keeper
from scalekd.training.folder import RunFolder, write_json
from scalekd.training.logs import JsonLinesLogger
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
    quieten_lightning()
    folder = RunFolder(output)
    if resume and recipe.micro_batch is None:  # what fitted when the run was started
        recipe = recipe.model_copy(update={"micro_batch": folder.stored_keys().get("micro_batch")})
    run = _Run(recipe, folder, console or Console(stderr=True))
    run.folder.check(recipe, resume=resume, overwrite=overwrite)
    run.build()
    run.announce()
    run.folder.prepare(run.recipe, run.inputs(), resume=resume)  # last: what cannot start must not delete another run
    return run.fit(resume and run.folder.checkpoint.is_file())


@dataclass
class _Run:
    """The parts of a run, in the order in which they come to be."""

    recipe: Recipe
    folder: RunFolder
    console: Console

    def build(self) -> None:
        """Read the data's listing and build the pair; touches no file of the run."""
        recipe = self.recipe
        if recipe.data is None:
            raise UserError("data: none is given; give --data (a folder with train/<class>/ and val/<class>/)")
        self.train, self.val = _read_data(recipe, recipe.data)
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
        # Seeded here and again below, so that all methods start from the same student.
        seed_everything(recipe.seed, verbose=False)
        self.student = build_student(recipe, head_width(recipe, self.teacher, self.classes))
        self.measured = len(self.val) > 0 and self.student.num_classes > 0
        seed_everything(recipe.seed, verbose=False)
        self.method = build_method(recipe, self.teacher, self.student)
        self.training_transform = training_transform(
            recipe.resolution,
            crop_scale=recipe.crop_scale,
            crop_ratio=recipe.crop_ratio,
            flip=recipe.flip,
            rand_augment=recipe.rand_augment,
            erasing=recipe.erasing,
        )
        if self.teacher is not None and self.dtype == torch.bfloat16:
            self.teacher.hold_weights(self.dtype)
        if recipe.channels_last:
            self.student.model.to(memory_format=torch.channels_last)
        at_once = recipe.micro_batch or self._fitting_batch()
        self.recipe = recipe = recipe.model_copy(update={"micro_batch": at_once})  # the run is to be repeatable
        self.accumulate = recipe.batch // at_once
        validation = ReplayDataset(self.val, evaluation_transform(recipe.resolution, recipe.crop_fraction))
        self.val_loader = evaluation_loader(validation, at_once, recipe.workers)

    def _fitting_batch(self) -> int:
        """As many images of the batch as fit into the device's memory at once."""
        recipe = self.recipe
        free = available_memory(self.device)  # before the method moves there, which is part of the prediction
        try:
            return largest_batch(
                self.method.to(self.device),
                budget_bytes=round(USABLE * free),
                batch=recipe.batch,
                optimizer=recipe.optimizer,
                ema=recipe.ema is not None,
                dtype=self.dtype,
                even=recipe.mixup > 0 or recipe.cutmix > 0,
            )
        except UnpredictableError as error:
            self.say(f"warning: {error}; taking the whole batch of {recipe.batch} at once")
            return recipe.batch

    def say(self, text: str) -> None:
        """Print text as it is, file names with brackets included."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def announce(self) -> None:
        """Print the plan, and measure the teacher where it has the data's classes."""
        self.say(describe(self.method))
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
        self.teacher_accuracy = None
        if self.measured and self.teacher is not None and self.teacher.num_classes == len(self.classes):
            self.teacher_accuracy = self._check_teacher(self.teacher)
            self.say(f"teacher   top1 {self.teacher_accuracy.top1:.2f}% on the validation images")

    def _check_teacher(self, teacher: Teacher) -> Accuracy:
        """Measure the teacher on the validation images; near chance is an error."""
        accuracy = self._measure(lambda images: teacher(images).logits, teacher.to(self.device))
        chance = 100 / len(self.classes)
        needs_logits = self.method.logit_weight > 0 and self.recipe.check_teacher
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

    def inputs(self) -> dict[str, Any]:
        """What the run reads: the listing of each split, and the hashes of local weights."""
        recipe = self.recipe
        inputs: dict[str, Any] = {"training data": self.train.fingerprint, "validation data": self.val.fingerprint}
        weights = {
            "teacher": recipe.teacher_weights or (recipe.method != "none" and recipe.teacher),
            "student": recipe.student_weights or recipe.student,
        }
        return inputs | {
            f"{role} weights": file_hash(path) for role, path in weights.items() if path and Path(path).is_file()
        }

    def fit(self, resume: bool) -> dict[str, Any]:
        """Train, validate, and write the result."""
        recipe, folder = self.recipe, self.folder
        step = _read_step(folder.checkpoint) if resume else 0
        folder.trim_metrics(step)
        stream = TrainingStream(
            size=len(self.train),
            batch=recipe.batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            accumulate=self.accumulate,
            start=step * self.accumulate,
        )
        dataset = ReplayDataset(self.train, self.training_transform, seed=recipe.seed, substitute=True)
        trainer = self._trainer()
        module = DistillationModule(recipe, self.method, self.steps, self.corrupt)
        started = time.perf_counter()
        trainer.fit(
            module,
            training_loader(dataset, stream, recipe.workers),
            self.val_loader if self.measured else None,
            ckpt_path=folder.checkpoint if resume else None,
            weights_only=True,
        )
        accuracies = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if "val/" in k}
        if not self.measured:
            module.final_student.save(folder.student, self.classes)
        elif not accuracies:  # resumed after its last step
            measured = self._measure(lambda images: module.final_student(images).logits, module.eval().to(self.device))
            accuracies = {"top1": measured.top1} | ({} if measured.top5 is None else {"top5": measured.top5})
            module.final_student.save(folder.student, self.classes, round(measured.top1, 2))
        result = {
            "method": recipe.method,
            "top1": None,
            **accuracies,
            "teacher_top1": None if self.teacher_accuracy is None else self.teacher_accuracy.top1,
            "samples": trainer.global_step * recipe.batch,
            "steps": trainer.global_step,
            "seconds_since_start_or_resume": round(time.perf_counter() - started, 1),
            "corrupt_images": sorted(self.corrupt.paths),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "student": folder.student.name,
            "sha256": file_hash(folder.student),
        }
        write_json(folder.result, result)
        return result

    def _trainer(self) -> Trainer:
        recipe, folder = self.recipe, self.folder
        interval = self.steps * self.accumulate * recipe.validate_every
        clock = DataClock()
        return Trainer(
            accelerator=self.device.type,
            devices=1,
            accumulate_grad_batches=self.accumulate,
            precision="bf16-mixed" if self.dtype == torch.bfloat16 else "32-true",
            # The whole run is one stream of batches (see TrainingStream): Lightning counts steps, not epochs.
            max_steps=self.steps * recipe.epochs,
            max_epochs=-1,
            val_check_interval=interval if self.measured else None,
            limit_val_batches=None if self.measured else 0,
            sync_batchnorm=recipe.sync_batchnorm,
            check_val_every_n_epoch=None,
            gradient_clip_val=recipe.clip,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=[JsonLinesLogger(folder.metrics), TensorBoardLogger(folder.path, name="tensorboard", version="")],
            callbacks=[
                Display(
                    self.console,
                    clock,
                    batch=recipe.batch,
                    steps_per_epoch=self.steps,
                    epochs=recipe.epochs,
                    interval=None if self.measured else interval,
                ),
                Keeper(folder, self.classes, interval=interval, validates=self.measured),
            ],
            profiler=clock,
            default_root_dir=folder.path,
        )


def _read_data(recipe: Recipe, data: Path) -> tuple[Split, Split]:
    """Training and validation images as the recipe's `labels` wants them."""
    if recipe.labels == "none":
        return read_label_free(data, recipe.train_split, recipe.val_split, recipe.unlabelled_split)
    train, val = read_splits(data, recipe.train_split, recipe.val_split)
    if recipe.method != "none" and (data / recipe.unlabelled_split).is_dir():
        train = train + read_unlabelled(data, recipe.unlabelled_split)
        if recipe.mixup or recipe.cutmix:
            raise UserError("mixup: images with and without labels cannot be mixed; set mixup and cutmix to 0")
    return train, val


def _read_step(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was written at."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error


def quieten_lightning() -> None:
    """Leave to our own lines what Lightning would say."""
    for name in ("pytorch_lightning", "timm.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*in eval mode.*",
        ".*dataloader is not resumable.*",
        ".*lr_scheduler.step.*",
        ".*logging interval.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*",
        ".*no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message)
