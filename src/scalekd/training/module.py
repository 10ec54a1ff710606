"""The Lightning module around `method(images, labels)`."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor

from scalekd.data import Batch, CorruptImages, seeded
from scalekd.errors import UserError
from scalekd.evaluation import accuracy_metrics
from scalekd.method import Losses, Method
from scalekd.models import Student
from scalekd.recipes import Recipe
from scalekd.training.optimisation import build_optimizer, build_schedule

_MEND = "A lower lr, a longer warm-up or clip usually mends it"


class NonFiniteLossError(UserError):
    """A loss term, or a weight of the student, became NaN or infinite."""


class DistillationModule(LightningModule):
    """Trains the student of a method; holds student, projectors and the moving average, never the teacher.

    Args:
        recipe: The run's settings.
        method: The joined pair.
        steps_per_epoch: Optimiser steps an epoch, for the schedule.
        corrupt: Counter of unreadable images.
    """

    def __init__(self, recipe: Recipe, method: Method, steps_per_epoch: int, corrupt: CorruptImages) -> None:
        super().__init__()
        self.recipe, self.method, self.corrupt = recipe, method, corrupt
        self.steps_per_epoch = steps_per_epoch
        self.ema = ModelEmaV3(method.student, decay=recipe.ema) if recipe.ema else None
        num_classes = method.student.num_classes
        self.metrics = accuracy_metrics(num_classes) if num_classes else None  # a student without a head has none
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes or 1
            )

    @property
    def final_student(self) -> Student:
        """The weights that are evaluated and saved: the moving average where there is one."""
        student = self.method.student if self.ema is None else self.ema.module
        assert isinstance(student, Student)
        return student

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.corrupt.add(batch.corrupt)
        images, labels = batch.images, batch.labels
        # Mixup, dropout and drop path draw from (seed, batch), so that a resumed run draws the same.
        with seeded(self.recipe.seed, batch_idx):
            if self.mixup is not None:
                # Without labels the images are mixed all the same: teacher and student see the same mixture.
                images, labels = self.mixup(images, labels.clamp(min=0))
            losses: Losses = self.method(images, None if self.recipe.labels == "none" else labels, batch.taught)
        total = losses.total
        if not torch.isfinite(total):
            bad = [name for name, value in losses.terms.items() if not torch.isfinite(value)]
            raise NonFiniteLossError(
                f"loss: {', '.join(bad) or 'the sum of all terms'} became {total.item()} at step {self.global_step}; "
                f"the last checkpoint is kept. {_MEND}"
            )
        terms = {f"train/{name}": value.detach() for name, value in losses.terms.items()}
        cosines = {f"cosine/{name}": value for name, value in losses.cosines.items()}
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        values = {"train/loss": total.detach(), **terms, **cosines, "lr": learning_rate}
        self.log_dict(values, logger=False)
        step, completes_step = self.global_step + 1, (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if completes_step and (step % self.recipe.log_every == 0 or step == self.trainer.max_steps):
            self._log(values, step)
        return total

    def check_finite(self) -> None:
        """Make sure that what is about to be saved is worth keeping.

        Raises:
            NonFiniteLossError: If a parameter of the student is NaN or infinite; names it.
        """
        for name, parameter in self.final_student.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteLossError(
                    f"student: {name} became NaN or infinite by step {self.global_step}; "
                    f"the last checkpoint is kept. {_MEND}"
                )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.method.student)

    def on_validation_epoch_start(self) -> None:
        assert self.metrics is not None
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.corrupt.add(batch.corrupt)
        if not len(batch.images):
            return
        logits = self.final_student(batch.images).logits.float()
        if not torch.isfinite(logits).all():
            raise NonFiniteLossError(
                f"student: its logits are NaN or infinite after step {self.global_step}; "
                f"the last checkpoint is kept. {_MEND}"
            )
        assert self.metrics is not None
        self.metrics.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        assert self.metrics is not None
        accuracies = {f"val/{name}": 100 * value for name, value in self.metrics.compute().items()}
        self.log_dict(accuracies, logger=False)
        self._log(accuracies, self.global_step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Write to the loggers at once: Lightning would after the checkpoint, and a stop between loses the line."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=step)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.recipe, self.method)
        schedule = build_schedule(self.recipe, optimizer, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)
