"""The task of distillation: students that train on the same batches, with one forward of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from scalekd.data import Batch, CorruptImages, seeded
from scalekd.engine.learner import ADVICE, Learner, NonFiniteLossError, StepLosses
from scalekd.engine.sharding import whole
from scalekd.engine.task import Task
from scalekd.evaluation import accuracy_metrics, main_metric, percentages, update_metrics
from scalekd.methods.base import Method
from scalekd.methods.outputs import TeacherOutputs
from scalekd.models import Student
from scalekd.models.failure import naming_model
from scalekd.recipes import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import naming


class Best(NamedTuple):
    """The validation with the highest main figure so far: its step and this figure in percent."""

    step: int
    accuracy: float


class StudentLearner(Learner):
    """A student in training, with its accuracies and its run folder.

    Attributes:
        best: The best validation so far; None before the first.
        waited: Validations since then.

    Args:
        recipe: The run's settings.
        method: The joined pair, on its device.
        folder: The run folder; None to write no files.
        watch: Called with the step after each validation, for example to draw pictures.
        check_cosines: Called with the logged cosines and the step at each log line.
        others: Further arguments of `Learner`: optimizer, schedule, average, ...
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        folder: RunFolder | None = None,
        *,
        watch: Callable[[int], object] | None = None,
        check_cosines: Callable[[dict[str, float], int], object] | None = None,
        **others: Any,
    ) -> None:
        assert isinstance(method.student, Student)
        super().__init__(method, method.student, keys=recipe, role="student", **others)
        self.folder, self._watch, self._check_cosines = folder, watch, check_cosines
        classes, device = method.student.num_classes, method.student.mean.device
        metrics = accuracy_metrics(classes, multi_label=recipe.multi_label) if classes else None
        self.metrics = metrics and metrics.to(device)  # a student without a head has none
        self.best: Best | None = None
        self.waited = 0

    @property
    def recipe(self) -> Recipe:
        """The run's settings."""
        assert isinstance(self.keys, Recipe)
        return self.keys

    @property
    def method(self) -> Method:
        """The joined pair. It is registered once, as `model`, so that a checkpoint holds its tensors once."""
        assert isinstance(self.model, Method)
        return self.model

    @property
    def final_student(self) -> Student:
        """The student whose weights are evaluated and saved."""
        assert isinstance(self.final, Student)
        return self.final

    @property
    def accuracies(self) -> dict[str, float]:
        """The figures of the last validation in percent, such as `top1` and `top5`; empty before the first."""
        return {k.removeprefix("val/"): float(v) for k, v in self.figures.items() if k.startswith("val/")}

    @property
    def metric(self) -> str:
        """Name of the main figure."""
        return main_metric(self.accuracies)

    @property
    def accuracy(self) -> float | None:
        """The main figure of the last validation in percent: top-1 or, with several labels per image, mAP."""
        return self.accuracies.get(self.metric)

    def log_training(self, step: int) -> None:
        """Log losses, cosines and learning rate, and call `check_cosines`.

        Raises:
            NonFiniteLossError: If the last loss is NaN or infinite; names the terms.
        """
        super().log_training(step)
        if self._check_cosines is not None:
            figures = self.figures.items()
            self._check_cosines({k.removeprefix("cosine/"): float(v) for k, v in figures if "cosine/" in k}, step)

    def start_validation(self) -> None:
        """Reset the metrics."""
        assert self.metrics is not None
        self.metrics.reset()

    def validate(self, images: Tensor, labels: Tensor, step: int) -> None:
        """Count the correct answers of a batch; if sharded, run a blank image if it is empty (all must run).

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
                f"student: its logits are NaN or infinite after step {step}; the last checkpoint is kept. {ADVICE}"
            )
        assert self.metrics is not None
        update_metrics(self.metrics, logits, labels)

    def end_validation(self, step: int) -> None:
        """Compute and log the accuracies, and call `watch`."""
        assert self.metrics is not None
        self.log_validation({f"val/{name}": value for name, value in percentages(self.metrics).items()}, step)
        self.waited += 1
        found = self.accuracies[self.metric]
        if self.best is None or found > self.best.accuracy:
            self.best, self.waited = Best(step, found), 0
        if self._watch is not None:
            self._watch(step)

    def checkpoint_state(self) -> dict[str, Any]:
        """Return this learner's state for a checkpoint, apart from its tensors."""
        return super().checkpoint_state() | {
            "best": self.best and list(self.best),
            "waited": self.waited,
            "epochs": self.recipe.epochs,
        }

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `checkpoint_state` returned."""
        super().restore_checkpoint_state(state)
        lost = self.recipe.keep_best and not (self.folder is not None and self.folder.best_student.is_file())
        if state.get("best") and not lost:  # otherwise the best is sought from here on
            self.best = Best(*state["best"])
            # A run that continues for more epochs begins to wait again: its learning rate rises, and accuracy falls.
            self.waited = state.get("waited", 0) if state.get("epochs") == self.recipe.epochs else 0

    def save(self, classes: tuple[str, ...], accuracy: float | None, *, best: bool = False) -> None:
        """Write the student's weights, with class names and accuracy in percent; called by all processes.

        Args:
            classes: The class names.
            accuracy: The main figure; None if it was not measured.
            best: Whether to write the file of the best validation.
        """
        assert self.folder is not None
        file = self.folder.best_student if best else self.folder.student
        state = {name: whole(tensor) for name, tensor in self.final_student.model.state_dict().items()}
        if self.processes.first:
            rounded = None if accuracy is None else round(accuracy, 2)
            self.final_student.save(file, classes, rounded, state=state)


class PreparedBatch(NamedTuple):
    """A batch as it is passed to teacher and students.

    Attributes:
        images: `[B, 3, h, w]`, mixed if the recipe uses mixup or cutmix.
        labels: `[B]` or, after mixup, `[B, K]`; None to learn without labels.
        teacher_outputs: From a cache, or computed once for several students; otherwise None.
        feature_scale: Factor on the feature terms (see `feature_schedule`).
    """

    images: Tensor
    labels: Tensor | None
    teacher_outputs: TeacherOutputs | None
    feature_scale: Tensor


class DistillationTask(Task):
    """Trains students whose recipes differ in `student` only; each takes the same steps as if it were trained alone.

    Args:
        learners: The students.
        classes: Class names for the students' cards.
        corrupt: Counter of unreadable images.
        steps: Optimiser steps of the run.
        micro_batches: Micro-batches of a step, over all processes.
    """

    def __init__(
        self,
        learners: Sequence[StudentLearner],
        classes: tuple[str, ...],
        corrupt: CorruptImages,
        *,
        steps: int = 1,
        micro_batches: int = 1,
    ) -> None:
        self.learners: Sequence[StudentLearner] = learners
        self.corrupt, self._classes = corrupt, classes
        self._steps, self._micro_batches = steps, micro_batches
        self._recipe = recipe = learners[0].recipe
        self._mixup = None
        if recipe.mixup or recipe.cutmix:
            self._mixup = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=learners[0].final_student.num_classes or 1,
            )

    def prepare(self, batch: Batch, index: int) -> PreparedBatch:
        images, labels = batch.images, batch.labels
        if self._mixup is not None:
            with seeded(self._recipe.seed, index):  # teacher and students see the same mixture
                images, labels = self._mixup(images, labels.clamp(min=0))
        outputs, teacher = batch.teacher_outputs, self.learners[0].method.teacher
        if outputs is None and teacher is not None and len(self.learners) > 1:
            outputs = self.learners[0].method.teach(images)
        return PreparedBatch(
            images, None if self._recipe.labels == "none" else labels, outputs, self._feature_scale(index)
        )

    def _feature_scale(self, index: int) -> Tensor:
        """Return the factor on the feature terms in a micro-batch; a tensor, because compiled code keeps floats."""
        if self._recipe.feature_schedule == "constant":
            return torch.tensor(1.0)
        return torch.tensor(1 - index // self._micro_batches / self._steps)

    def losses(self, learner: StudentLearner, batch: PreparedBatch) -> StepLosses:
        losses = learner.called(*batch)
        return StepLosses(losses.terms, {f"cosine/{name}": value for name, value in losses.cosines.items()})

    def naming_failures(self, learner: StudentLearner, batch: PreparedBatch) -> AbstractContextManager[None]:
        student = learner.method.student
        assert isinstance(student, Student)
        shape = [len(batch.images), 3, student.resolution, student.resolution]
        return naming_model("student", student.name, shape, "be trained on")

    def start_validation(self) -> None:
        for learner in self.learners:
            learner.start_validation()

    def validate(self, batch: Batch, step: int) -> None:
        for learner in self.learners:
            with naming(learner.name):
                learner.validate(batch.images, batch.labels, step)

    def end_validation(self, step: int) -> None:
        for learner in self.learners:
            learner.end_validation(step)
            # Before the checkpoint of this step, so that a run that is resumed from it has the file.
            if self._recipe.keep_best and learner.best is not None and learner.best.step == step:
                learner.save(self._classes, learner.best.accuracy, best=True)

    def ends_early(self) -> str:
        patience = self._recipe.patience
        if patience is None or any(learner.waited < patience for learner in self.learners):
            return ""
        return f"no higher {self.learners[0].metric} in the last {patience} validation{'s' * (patience > 1)} (patience)"

    def summary(self) -> list[str]:
        if len(self.learners) == 1:
            return _figures(self.learners[0])
        return [_short(learner) for learner in self.learners]

    def save(self, *, measured: bool) -> None:
        for learner in self.learners:
            learner.save(self._classes, learner.accuracy if measured else None)


def _figures(learner: StudentLearner) -> list[str]:
    """Format accuracies, loss and cosines of a single student."""
    cosines = [f"{k.removeprefix('cosine/')} {float(v):.2f}" for k, v in learner.figures.items() if "cosine/" in k]
    return [
        *(f"{name} {value:.2f}%" for name, value in learner.accuracies.items()),
        f"loss {float(learner.figures['train/loss']):.3f}",
        *([f"cosines {', '.join(cosines)}"] if cosines else []),
    ]


def _short(learner: StudentLearner) -> str:
    """Format name, top-1 and loss of one of several students."""
    accuracy = f"{learner.metric} {learner.accuracy:.2f}%, " if learner.accuracies else ""
    return f"{learner.name}: {accuracy}loss {float(learner.figures['train/loss']):.3f}"
