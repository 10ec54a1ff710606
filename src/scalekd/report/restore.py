"""From what a run has left to its models and images, as far as they are still there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalekd.data import Batch, Key, ReplayDataset, Split, in_order, read_split
from scalekd.data.loader import collate
from scalekd.errors import UserError
from scalekd.hardware import autocast, pick_compute
from scalekd.method import Method, ScaleKD
from scalekd.models import Classifier, Teacher
from scalekd.models.layout import prepare, prepare_classifier
from scalekd.models.sources import PYTHON
from scalekd.recipes import Recipe
from scalekd.report.record import Record
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, head_width
from scalekd.tasks.distill.inputs import evaluation_images, read_data
from scalekd.tasks.distill.restoring import restore_method

_BATCH = 16  # images at once where a run does not say


@dataclass(frozen=True)
class Sample:
    """Images of the validation split, spread evenly over it.

    Attributes:
        split: All images of the split.
        dataset: The same, as they are evaluated; a sample's label is its index.
        indices: Those to look at.
        at_once: Images in a batch, as many as where the run measured them.
    """

    split: Split
    dataset: ReplayDataset
    indices: list[int]
    at_once: int

    def chosen(self, count: int) -> list[int]:
        """The indices of some of them, spread evenly."""
        return sorted({self.indices[int((number + 0.5) * len(self.indices) / count)] for number in range(count)})

    def read(self, index: int) -> Tensor | None:
        """An image `[3, h, w]` as the student is evaluated on it; None if it cannot be read."""
        return self.dataset[Key(0, index)].image

    @property
    def batches(self) -> DataLoader[Batch]:
        """Batches of the images; unreadable ones are left out."""
        keys = [Key(0, index) for index in self.indices]
        parts = [keys[first : first + self.at_once] for first in range(0, len(keys), self.at_once)]
        return DataLoader(self.dataset, batch_sampler=parts, collate_fn=collate)  # type: ignore[arg-type]


def read_sample(recipe: Recipe, classes: tuple[str, ...], count: int) -> Sample:
    """Up to `count` images; of a run without labelled images those that it learns from.

    Args:
        recipe: The run's settings.
        classes: Class names in the order of the student's logits.
        count: Images.

    Raises:
        UserError: If the data is gone.
    """
    if recipe.labels == "none":
        train, val = read_data(recipe)
        split = val if len(val) else train
    elif recipe.data is None:
        raise UserError("data: the run names none")
    else:
        split = read_split(recipe.data, recipe.val_split, recipe)
    if sorted(classes) == sorted(split.classes):
        split = in_order(split, classes)
    return sample(recipe, split, count)


def sample(recipe: Recipe, split: Split, count: int) -> Sample:
    """Up to `count` images of a split."""
    step = max(len(split) / count, 1)
    indices = [int(number * step) for number in range(min(count, len(split)))]
    numbered = Split(split.store, np.arange(len(split), dtype=np.int32), ())
    return Sample(split, evaluation_images(recipe, numbered), indices, recipe.micro_batch or _BATCH)


@dataclass(frozen=True)
class Models:
    """A run's models.

    Attributes:
        device: Where they are to run.
        dtype: The autocast type.
        student: The weights that the run has saved.
        teacher: Its teacher.
        method: Student and projectors, joined with the teacher.
        step: The optimiser step of the checkpoint that ScaleKD's weights are of; None without one.
    """

    device: torch.device
    dtype: torch.dtype
    student: Classifier | None
    teacher: Teacher | None
    method: Method | None
    step: int | None

    def autocast(self) -> torch.autocast:
        """What they run in."""
        return autocast(self.device, self.dtype)

    @property
    def projectors(self) -> ScaleKD | None:
        """The method, where it is ScaleKD with the weights of a checkpoint."""
        return self.method if isinstance(self.method, ScaleKD) and self.step is not None else None

    def settle(self, *, channels_last: bool) -> None:
        """Bring them to the device, in eval mode, the student laid out as the run measured it."""
        if self.method is not None:
            prepare(self.method, self.device, self.dtype, channels_last=False)
            self.method.to(self.device).eval()
        if self.student is not None:
            self.student.to(self.device)
            prepare_classifier(self.student, self.device, self.dtype, channels_last=channels_last)


def read_student(record: Record) -> Classifier:
    """The student that the run has saved.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    file, name = record.folder.student, str(record.keys.get("student"))
    if not file.is_file():
        raise UserError(f"{file.name} is not there yet: the run has not validated once")
    # Code of the user's own is named by the recipe alone, never by weights.
    named = {"model": name, "weights": file} if name.startswith(PYTHON) else {"model": file}
    return Classifier(**named).eval()


def join(recipe: Recipe, student: Classifier | None) -> tuple[Teacher | None, Method]:
    """Teacher and method with random weights of student and projectors.

    Raises:
        UserError: If the teacher's weights are gone, or the pair cannot be built.
    """
    teacher = build_teacher(recipe) if recipe.method != "none" else None
    classes = student.classes if student is not None else ()
    bare = recipe.model_copy(update={"student_pretrained": False, "student_weights": None})
    width = student.num_classes if student is not None else head_width(recipe, teacher, classes)
    return teacher, build_method(recipe, teacher, build_student(bare, width))


def restore_models(record: Record, recipe: Recipe, say: Callable[[str], object]) -> Models:
    """The run's models, as far as they are there, on the CPU.

    Args:
        record: The run.
        recipe: Its settings.
        say: Called with a line for each that is not.
    """
    student = teacher = method = step = None
    try:
        student = read_student(record)
    except UserError as error:
        say(f"What the student answers is left out: {error}.")
    try:
        teacher, method = join(recipe, student)
    except UserError as error:
        say(f"Figures of the teacher are left out: {error}.")
    if isinstance(method, ScaleKD):
        try:
            step = restore_method(method, record.folder)
        except UserError as error:
            say(f"Distances and attention are left out, as the projectors are in checkpoints only: {error}.")
    return Models(*pick_compute(recipe), student, teacher, method, step)
