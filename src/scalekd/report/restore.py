"""Rebuilds a run's models and reads its validation images from its folder, as far as they still exist."""

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
from scalekd.methods.base import Method
from scalekd.methods.scalekd import ScaleKD
from scalekd.models import Classifier, Teacher
from scalekd.models.memory_format import prepare, prepare_classifier
from scalekd.models.sources import PYTHON
from scalekd.recipes import Recipe
from scalekd.report.record import Record
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, head_width
from scalekd.tasks.distill.inputs import evaluation_images, read_data
from scalekd.tasks.distill.stored_method import restore_method

_BATCH = 16  # images at once if the run's recipe does not say


@dataclass(frozen=True)
class ImageSelection:
    """Images of the validation split, spread evenly over it.

    Attributes:
        split: All images of the split.
        dataset: The split with the evaluation transform; the label of an image is its index in the split.
        indices: Indices of the chosen images.
        at_once: Images per batch, as in the run's own validation.
    """

    split: Split
    dataset: ReplayDataset
    indices: list[int]
    at_once: int

    def chosen(self, count: int) -> list[int]:
        """Return up to `count` of the indices, spread evenly."""
        return sorted({self.indices[int((number + 0.5) * len(self.indices) / count)] for number in range(count)})

    def read(self, index: int) -> Tensor | None:
        """Read an image `[3, h, w]` with the evaluation transform; None if it cannot be read."""
        return self.dataset[Key(0, index)].image

    @property
    def batches(self) -> DataLoader[Batch]:
        """Batches of the chosen images; unreadable images are left out."""
        keys = [Key(0, index) for index in self.indices]
        parts = [keys[first : first + self.at_once] for first in range(0, len(keys), self.at_once)]
        return DataLoader(self.dataset, batch_sampler=parts, collate_fn=collate)  # type: ignore[arg-type]


def read_selection(recipe: Recipe, classes: tuple[str, ...], count: int) -> ImageSelection:
    """Choose up to `count` validation images; for a run without labelled images, training images.

    Args:
        recipe: The run's settings.
        classes: Class names in the order of the student's logits.
        count: Number of images.

    Raises:
        UserError: If the data is missing.
    """
    if recipe.labels == "none":
        train, val = read_data(recipe)
        split = val if len(val) else train
    elif recipe.data is None:
        raise UserError("data: the run's recipe names no data; pass --data")
    else:
        split = read_split(recipe.data, recipe.val_split, recipe)
    if sorted(classes) == sorted(split.classes):
        split = in_order(split, classes)
    return select_images(recipe, split, count)


def select_images(recipe: Recipe, split: Split, count: int) -> ImageSelection:
    """Choose up to `count` images of a split, spread evenly."""
    step = max(len(split) / count, 1)
    indices = [int(number * step) for number in range(min(count, len(split)))]
    numbered = Split(split.store, np.arange(len(split), dtype=np.int32), ())
    return ImageSelection(split, evaluation_images(recipe, numbered), indices, recipe.micro_batch or _BATCH)


@dataclass(frozen=True)
class Models:
    """A run's models; those that could not be restored are None.

    Attributes:
        device: Device that they run on.
        dtype: The autocast type.
        student: The student with the weights that the run saved.
        teacher: The teacher.
        method: Student and projectors, joined with the teacher.
        step: Optimiser step of the checkpoint that `method`'s weights come from; None without a checkpoint.
    """

    device: torch.device
    dtype: torch.dtype
    student: Classifier | None
    teacher: Teacher | None
    method: Method | None
    step: int | None

    def autocast(self) -> torch.autocast:
        """Return the autocast context that the models run in."""
        return autocast(self.device, self.dtype)

    @property
    def projectors(self) -> ScaleKD | None:
        """The method if it is ScaleKD with the weights of a checkpoint, otherwise None."""
        return self.method if isinstance(self.method, ScaleKD) and self.step is not None else None

    def settle(self, *, channels_last: bool) -> None:
        """Move the models to the device in eval mode.

        Args:
            channels_last: Whether the student uses the channels-last layout, as when the run measured it.
        """
        if self.method is not None:
            prepare(self.method, self.device, self.dtype, channels_last=False)
            self.method.to(self.device).eval()
        if self.student is not None:
            self.student.to(self.device)
            prepare_classifier(self.student, self.device, self.dtype, channels_last=channels_last)


def read_student(record: Record) -> Classifier:
    """Read the student that the run saved, in eval mode.

    Raises:
        UserError: If there is no such file, or it cannot be read.
    """
    file, name = record.folder.student, str(record.keys.get("student"))
    if not file.is_file():
        raise UserError(f"{file.name} does not exist yet: the run has not validated once")
    # Only the recipe names a model in the user's own code; a weights file must never cause code to be run.
    named = {"model": name, "weights": file} if name.startswith(PYTHON) else {"model": file}
    return Classifier(**named).eval()


def join(recipe: Recipe, student: Classifier | None) -> tuple[Teacher | None, Method]:
    """Build the teacher and the method; student and projectors get random weights.

    Raises:
        UserError: If the teacher's weights are missing, or the pair cannot be built.
    """
    teacher = build_teacher(recipe) if recipe.method != "none" else None
    classes = student.classes if student is not None else ()
    bare = recipe.model_copy(update={"student_pretrained": False, "student_weights": None})
    width = student.num_classes if student is not None else head_width(recipe, teacher, classes)
    return teacher, build_method(recipe, teacher, build_student(bare, width))


def restore_models(record: Record, recipe: Recipe, say: Callable[[str], object]) -> Models:
    """Restore the run's models on the CPU, as far as their files exist.

    Args:
        record: The run.
        recipe: The run's settings.
        say: Called with a line for each model that cannot be restored.
    """
    student = teacher = method = step = None
    try:
        student = read_student(record)
    except UserError as error:
        say(f"Figures of the student are left out: {error}.")
    try:
        teacher, method = join(recipe, student)
    except UserError as error:
        say(f"Figures of the teacher are left out: {error}.")
    if isinstance(method, ScaleKD):
        try:
            step = restore_method(method, record.folder)
        except UserError as error:
            say(f"Distances and attention are left out, because only checkpoints hold the projectors: {error}.")
    return Models(*pick_compute(recipe), student, teacher, method, step)
