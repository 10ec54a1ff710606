"""The Lightning module around one student or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from timm.data.mixup import Mixup
from torch import Tensor, nn

from scalekd.data import Batch, CorruptImages, seeded
from scalekd.models import Student
from scalekd.models.failure import naming_model
from scalekd.training.group import naming
from scalekd.training.learner import Learner
from scalekd.training.optimisation import build_optimizer, build_schedule


class DistillationModule(LightningModule):
    """Trains students on the same batches with one forward of the teacher, which it does not hold.

    One student is Lightning's to optimise. Several are optimised here, one after the other, so that the activations of
    one live at a time; each takes the very steps that it would take alone.

    Args:
        learners: The students; their recipes differ in `student` only.
        steps_per_epoch: Optimiser steps an epoch, for the schedule.
        accumulate: Micro-batches an optimiser step and process.
        corrupt: Counter of unreadable images.
    """

    def __init__(
        self, learners: Sequence[Learner], *, steps_per_epoch: int, accumulate: int, corrupt: CorruptImages
    ) -> None:
        super().__init__()
        self.learners, self.corrupt = tuple(learners), corrupt
        self._registered = nn.ModuleList(learners)  # what Lightning moves to the device and saves
        self.recipe = recipe = learners[0].recipe
        self.processes = learners[0].processes
        self.steps_per_epoch, self.accumulate = steps_per_epoch, accumulate
        self.automatic_optimization = len(learners) == 1
        self.mixup = None
        self._naming: AbstractContextManager[None] = nullcontext()  # of whoever runs a backward
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=learners[0].method.student.num_classes or 1,
            )

    @property
    def step(self) -> int:
        """Optimiser steps that every student has taken; Lightning counts those of all."""
        return self.global_step // len(self.learners)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self.corrupt.add(batch.corrupt)
        number = batch_idx * self.processes.count + self.processes.rank
        images, labels = self._mix(batch.images, batch.labels, number)
        taught = batch.taught
        if self.automatic_optimization:
            self._naming = _naming_student(self.learners[0], len(images))
            total = self.learners[0].learn(images, labels, taught, batch=number, step=self.step)
            self._log(0, batch_idx)
            return total
        teacher = self.learners[0].method.teacher
        if taught is None and teacher is not None:
            taught = teacher(images)
        for index, learner in enumerate(self.learners):
            self._naming = _naming_student(learner, len(images))
            with naming(learner.name):
                total = learner.learn(images, labels, taught, batch=number, step=self.step)
                self._log(index, batch_idx)
                with torch.autocast(self.device.type, enabled=False):  # Lightning's own steps are outside of it too
                    self._descend(index, total, batch_idx)
            torch.clear_autocast_cache()  # copies of this student's weights, which the next one has no use for
        return None

    def _mix(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        """Mixup, drawn from (seed, number): teacher and students see the same mixture, with or without labels."""
        if self.mixup is not None:
            with seeded(self.recipe.seed, number):
                images, labels = self.mixup(images, labels.clamp(min=0))
        return images, None if self.recipe.labels == "none" else labels

    def _completes_step(self, batch_idx: int) -> bool:
        return (batch_idx + 1) % self.accumulate == 0

    def _log(self, index: int, batch_idx: int) -> None:
        """Write a line of the step that this batch completes, if it is one to be logged."""
        step, last = self.step + 1, self.trainer.max_steps // len(self.learners)
        if self._completes_step(batch_idx) and (step % self.recipe.log_every == 0 or step == last):
            self.learners[index].log_training(self.trainer.optimizers[index].param_groups[0]["lr"], step)

    def _descend(self, index: int, total: Tensor, batch_idx: int) -> None:
        """What Lightning does for one student: backward and, where the batch completes a step, clip and step."""
        self.manual_backward(total / self.accumulate)
        if not self._completes_step(batch_idx):
            return
        step = self.step + 1  # now, as the last student's moves the count on
        optimizer: Any = self.optimizers()[index]  # type: ignore[index]
        schedule: Any = self.lr_schedulers()[index]  # type: ignore[index]
        if self.recipe.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.recipe.clip, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()
        self.learners[index].average()
        schedule.step_update(num_updates=step)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self._naming:
            super().backward(loss, *args, **kwargs)

    def check_finite(self) -> None:
        """Make sure that what is about to be saved is worth keeping.

        Raises:
            NonFiniteLossError: If a parameter of a student is NaN or infinite; names it.
        """
        for learner in self.learners:
            with naming(learner.name):
                learner.check_finite(self.step)

    def save(self, classes: tuple[str, ...], *, measured: bool = False) -> None:
        """Write the students' weights, in all processes at once; see `Learner.save`.

        Args:
            classes: Class names for their cards.
            measured: Whether the accuracies are these weights'.
        """
        for learner in self.learners:
            learner.save(classes, learner.accuracies["top1"] if measured else None)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        index = next(number for number, other in enumerate(self.trainer.optimizers) if other is optimizer)
        with naming(self.learners[index].name):
            self.learners[index].weigh_gradients(self.step + 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.learners[0].average()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count batches as they are cut now: with other processes or memory a step has another number of them."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        steps = checkpoint["global_step"] // len(self.learners)
        later = steps * self.accumulate - progress["current"]["ready"]
        for counts in (progress["current"], progress["total"]):
            for name in counts:
                counts[name] += later

    def share_buffers(self) -> None:
        """Give all processes the first one's running statistics, which are those that are saved."""
        if self.processes.count > 1:
            for learner in self.learners:
                for buffer in (*learner.method.buffers(), *(learner.ema.buffers() if learner.ema else ())):
                    dist.broadcast(buffer, 0)

    def on_validation_epoch_start(self) -> None:
        self.share_buffers()
        for learner in self.learners:
            learner.start_validation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validate(batch, self.step)

    def validate(self, batch: Batch, step: int) -> None:
        """Count the students' right answers of a batch, which is on their device."""
        self.corrupt.add(batch.corrupt)
        for learner in self.learners:
            with naming(learner.name):
                learner.validate(batch.images, batch.labels, step)

    def on_validation_epoch_end(self) -> None:
        for learner in self.learners:
            learner.end_validation(self.step)

    def configure_optimizers(self) -> Any:
        configured = []
        for learner in self.learners:
            optimizer = build_optimizer(learner.recipe, learner.method)
            schedule = build_schedule(learner.recipe, optimizer, self.steps_per_epoch)
            configured.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}})
        return configured

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)


def _naming_student(learner: Learner, images: int) -> AbstractContextManager[None]:
    """Names a student whose backward fails on so many images."""
    student = learner.method.student
    assert isinstance(student, Student)
    return naming_model("student", student.name, [images, 3, student.resolution, student.resolution], "be trained on")
