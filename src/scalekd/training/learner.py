"""A student in training, without the loop around it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from scalekd.data import seeded
from scalekd.errors import UserError
from scalekd.evaluation import accuracy_metrics
from scalekd.method import Losses, Method, TeacherOutputs
from scalekd.models import Student
from scalekd.recipes import Recipe
from scalekd.training.folder import RunFolder
from scalekd.training.live import Watcher
from scalekd.training.logs import JsonLinesLogger, TensorBoardEvents
from scalekd.training.processes import Processes
from scalekd.training.sharding import own_part, whole
from scalekd.training.skipping import IN_A_ROW, Skipper

_MEND = "A lower lr, a longer warm-up or clip usually mends it"


class NonFiniteLossError(UserError):
    """A loss term, or a weight of the student, became NaN or infinite."""


class Learner(nn.Module):
    """A student with all that is its own: method, moving average, figures, run folder. Holds no teacher.

    Args:
        recipe: The run's settings.
        method: The joined pair.
        folder: Where the run leaves its files; None to leave none.
        name: What it is called beside others; empty where it is alone.
        processes: Those that train it together.
        batchnorm: What the method's forward runs in, see `batchnorm_over`.
        watcher: What shows more than figures at each validation.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        folder: RunFolder | None = None,
        name: str = "",
        *,
        processes: Processes | None = None,
        batchnorm: AbstractContextManager[Any] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        super().__init__()
        self.processes, self._batchnorm = processes or Processes(), batchnorm or nullcontext()
        self.recipe, self.method, self.folder, self.name = recipe, method, folder, name
        self.ema = ModelEmaV3(method.student, decay=recipe.ema) if recipe.ema else None
        num_classes = method.student.num_classes
        self.metrics = accuracy_metrics(num_classes) if num_classes else None  # a student without a head has none
        self._rest: dict[str, Any] = {}  # learning rate, accuracies
        # Losses and cosines of each micro-batch of a step, and which step it is.
        self._parts: tuple[int, list[dict[str, Tensor]]] = (-1, [])
        # Of the last loss, until it was looked at: its step, whether it is finite, and when that is known.
        self._unchecked: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._skipper = Skipper(method) if recipe.nonfinite == "skip" else None
        self._steps = True  # whether the last gradients were of use
        self.loggers: list[Logger] = []
        self._events, self._watcher = None, watcher
        if folder is not None:
            self._events = TensorBoardEvents(folder.tensorboard)
            self.loggers = [JsonLinesLogger(folder.metrics), self._events]

    @property
    def final_student(self) -> Student:
        """The weights that are evaluated and saved: the moving average where there is one."""
        student = self.method.student if self.ema is None else self.ema.module
        assert isinstance(student, Student)
        return student

    @property
    def figures(self) -> dict[str, Any]:
        """The last value of each: losses and cosines (means over a step's images here), learning rate, accuracies."""
        parts = self._parts[1]
        means = dict(parts[0]) if parts else {}
        if len(parts) > 1:
            means = {name: torch.stack([part[name] for part in parts]).mean() for name in means}
        return self._rest | means

    @property
    def accuracies(self) -> dict[str, float]:
        """`top1` and `top5` in percent of the last validation; empty before the first."""
        return {k.removeprefix("val/"): float(v) for k, v in self.figures.items() if k.startswith("val/")}

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because their gradients were NaN or infinite."""
        return 0 if self._skipper is None else self._skipper.skipped

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds of this student beside its tensors."""
        skipper = self._skipper
        return {
            "figures": {name: float(value) for name, value in self.figures.items()},
            "skipped": None if skipper is None else [skipper.skipped, skipper.in_a_row],
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on from what `progress` gave."""
        self._rest = dict(progress["figures"])
        if self._skipper is not None:
            self._skipper.skipped, self._skipper.in_a_row = progress["skipped"]

    def learn(
        self, images: Tensor, labels: Tensor | None, taught: TeacherOutputs | None, *, batch: int, step: int
    ) -> Tensor:
        """The total loss of a batch; see `Method.forward` for the first three.

        Args:
            images: `[B, 3, h, w]`.
            labels: `[B]` or `[B, K]`.
            taught: The teacher's outputs where they are at hand.
            batch: Number of the micro-batch in the run, over all processes.
            step: Optimiser steps taken, for the message.

        Raises:
            NonFiniteLossError: If the loss of the batch before is NaN or infinite; names the terms.
        """
        if self._parts[0] != step:
            self._parts = step, []
            if self._skipper is not None:
                self._skipper.begin()
        # Dropout and drop path draw from (seed, batch): a resumed run draws the same, whoever learns beside.
        with seeded(self.recipe.seed, batch), self._batchnorm:
            losses: Losses = self.method(images, labels, taught)
        total = losses.total
        terms = {f"train/{name}": value.detach() for name, value in losses.terms.items()}
        cosines = {f"cosine/{name}": value for name, value in losses.cosines.items()}
        finite = torch.isfinite(total.detach()).to("cpu", non_blocking=True)  # on its way while the GPU goes on
        there = torch.cuda.Event() if total.is_cuda else None  # type: ignore[no-untyped-call]
        if there is not None:
            there.record()
        self._check_loss()
        self._parts[1].append({"train/loss": total.detach(), **terms, **cosines})
        self._unchecked = (step, finite, there) if self._skipper is None else None
        return total

    def weigh_gradients(self, step: int) -> None:
        """Drop the gradients of a step if they are not finite and the recipe wants such steps skipped.

        Raises:
            NonFiniteLossError: If that has happened too often in a row.
        """
        self._steps = self._skipper is None or not self._skipper.look()
        if self._skipper is None or self._steps:
            return
        self._log({"skipped_steps": self._skipper.skipped}, step)
        if self._skipper.in_a_row == IN_A_ROW:
            raise NonFiniteLossError(
                f"loss: the gradients of {IN_A_ROW} steps in a row were NaN or infinite, the last of step {step}; "
                f"the last checkpoint is kept. {_MEND}"
            )

    def _check_loss(self) -> None:
        """Look at the loss of the batch before, once; waits for its forward only, which is long done."""
        pending, self._unchecked = self._unchecked, None
        if pending is None:
            return
        step, finite, there = pending
        if there is not None:
            there.synchronize()
        if finite:
            return
        figures = self.figures
        total = figures["train/loss"]
        values = {name.removeprefix("train/"): value for name, value in figures.items() if "train/" in name}
        bad = [name for name, value in values.items() if name != "loss" and not torch.isfinite(value)]
        raise NonFiniteLossError(
            f"loss: {', '.join(bad) or 'the sum of all terms'} became {total.item()} at step {step}; "
            f"the last checkpoint is kept. {_MEND}"
        )

    def log_training(self, learning_rate: float, step: int) -> None:
        """Write the figures of the last step to the logs, over all its images, if the last loss is finite."""
        self._check_loss()
        figures = self.figures
        names = [name for name in figures if name.startswith(("train/", "cosine/"))]
        means = self.processes.mean(torch.stack([figures[name].float() for name in names]))
        self._parts = self._parts[0], [dict(zip(names, means.unbind(), strict=True))]
        self._rest["lr"] = learning_rate
        self._log({name: value for name, value in self.figures.items() if not name.startswith("val/")}, step)

    def average(self) -> None:
        """Take the student's weights into the moving average, if the step was one."""
        if self.ema is not None and self._steps:
            self.ema.update(self.method.student)

    def check_finite(self, step: int) -> None:
        """Make sure that what is about to be saved is worth keeping.

        Raises:
            NonFiniteLossError: If the last loss or a parameter of the student is NaN or infinite; names it.
        """
        self._check_loss()
        for name, parameter in self.final_student.named_parameters():
            if not torch.isfinite(own_part(parameter)).all():
                raise NonFiniteLossError(
                    f"student: {name} became NaN or infinite by step {step}; the last checkpoint is kept. {_MEND}"
                )

    def start_validation(self) -> None:
        """Forget the images of the validation before."""
        assert self.metrics is not None
        self.metrics.reset()

    def validate(self, images: Tensor, labels: Tensor, step: int) -> None:
        """Count the right answers of a batch; of several that shard, one without images runs a blank one.

        Raises:
            NonFiniteLossError: If a logit is NaN or infinite.
        """
        if not len(images):
            if self.recipe.strategy == "fsdp" and self.processes.count > 1:
                self.final_student(images.new_zeros(1, 3, self.recipe.resolution, self.recipe.resolution))
            return
        logits = self.final_student(images).logits.float()
        if not torch.isfinite(logits).all():
            raise NonFiniteLossError(
                f"student: its logits are NaN or infinite after step {step}; the last checkpoint is kept. {_MEND}"
            )
        assert self.metrics is not None
        self.metrics.update(logits, labels)

    def end_validation(self, step: int) -> None:
        """Work out the accuracies and write them to the logs, with what there is to see."""
        assert self.metrics is not None
        accuracies = {f"val/{name}": 100 * value for name, value in self.metrics.compute().items()}
        self._rest |= accuracies
        self._log(accuracies, step)
        if self._watcher is not None and self._events is not None:
            self._watcher.watch(self._events, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Write what is finite, as JSON knows no NaN. At once: Lightning would after the checkpoint, too late."""
        numbers = {name: float(value) for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in numbers.items() if math.isfinite(value)}, step=step)

    def save(self, classes: tuple[str, ...], top1: float | None) -> None:
        """Write the student's weights, with class names and accuracy in percent; called by all processes."""
        assert self.folder is not None
        student = self.final_student
        state = {name: whole(tensor) for name, tensor in student.model.state_dict().items()}
        if self.processes.first:
            student.save(self.folder.student, classes, None if top1 is None else round(top1, 2), state=state)
