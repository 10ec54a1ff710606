"""Measures the figures that need a run's models and images.

If models or data are missing, the figures that need them are left out and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from scalekd.data.decoding import DECODING
from scalekd.errors import UserError
from scalekd.methods.scalekd import ScaleKD
from scalekd.planner import ModelCost, StepFlops, model_cost, step_flops
from scalekd.progress import watched, working
from scalekd.recipes import Recipe
from scalekd.report.attention import ATTENDED, attended
from scalekd.report.pictures import thumbnail, uri
from scalekd.report.predictions import Answer, answers, worst
from scalekd.report.record import Record
from scalekd.report.restore import ImageSelection, Models, read_selection, restore_models
from scalekd.report.spectra import Floats, compared, energy_shares
from scalekd.runs.measured_settings import measured_as

_WORST = 18
_PART = 16  # images whose distances are computed at once


class Attended(NamedTuple):
    """An image and the attention of the projectors over it, as data URIs.

    Attributes:
        image: The image.
        maps: Two pictures by the projector's name: the mean over all queries, and the query at the grid's centre.
    """

    image: str
    maps: dict[str, tuple[str, str]]


class Thumbnail(NamedTuple):
    """A wrongly classified image: a data URI, the student's prediction and the image's path."""

    picture: str
    answer: Answer
    path: str


@dataclass
class Figures:
    """The measured figures; those that could not be measured are None or empty.

    Attributes:
        notes: What was left out, and why.
        images: Number of images measured.
        of: Number of images in their split.
        classes: Class names.
        student: Parameters and multiply-accumulates of the student.
        teacher: Parameters and multiply-accumulates of the teacher.
        flops: FLOPs of a training step for one image.
        given: The student's predictions.
        teacher_given: The teacher's predictions.
        spectrum: Energy shares `[H, W]` of the teacher's tokens.
        distances: Squared distances of all positions, by place and by what is compared.
        step: Optimiser step of the checkpoint that distances and attention were computed with.
        attended: Attention over some images.
        worst: The images with the lowest predicted probability of their true class.
    """

    notes: list[str] = field(default_factory=list)
    images: int = 0
    of: int = 0
    classes: tuple[str, ...] = ()
    student: ModelCost | None = None
    teacher: ModelCost | None = None
    flops: StepFlops | None = None
    given: list[Answer] = field(default_factory=list)
    teacher_given: list[Answer] = field(default_factory=list)
    spectrum: Floats | None = None
    distances: dict[str, dict[str, Floats]] = field(default_factory=dict)
    step: int | None = None
    attended: list[Attended] = field(default_factory=list)
    worst: list[Thumbnail] = field(default_factory=list)


def measure_figures(record: Record, count: int, console: Console | None = None) -> Figures:
    """Measure all figures of a run.

    Args:
        record: The run.
        count: Number of validation images to use, spread evenly; 0 leaves out the figures that need images.
        console: Where to show progress. Default: standard error.
    """
    figures, recipe = Figures(), record.recipe
    if recipe is None:
        return figures
    models = restore_models(record, recipe, figures.notes.append)
    with working(f"{record.name}: counting operations", console):
        _count_costs(figures, models)
    if not count:
        figures.notes.append("Figures that need images are left out: none were asked for (--images 0).")
        return figures
    try:
        selection = read_selection(recipe, models.student.classes if models.student else (), count)
        models.settle(channels_last=measured_as(record.folder.path).get("channels_last", False))
        _Gatherer(figures, models, selection).run(f"report {escape(record.name)}", console)
    except UserError as error:
        figures.notes.append(f"Figures that need images are left out: {error}.")
        return figures
    _compare_data(figures, record, selection)
    _explain(figures, recipe, models)
    return figures


def _count_costs(figures: Figures, models: Models) -> None:
    if models.method is not None:
        figures.flops = step_flops(models.method)
    if models.student is not None:
        figures.student = model_cost(models.student)
    if models.teacher is not None:
        figures.teacher = model_cost(models.teacher)


def _compare_data(figures: Figures, record: Record, selection: ImageSelection) -> None:
    then = record.inputs.get("validation data")
    if len(selection.split.classes) and then not in (None, selection.split.fingerprint):
        figures.notes.append(
            f"The validation images have changed since the run ({then} then, {selection.split.fingerprint} now)."
        )
    if record.inputs and record.inputs.get("decoding") != DECODING:
        figures.notes.append(
            "The run was trained by a revision that decodes some images differently (see docs/data.md)."
        )


def _explain(figures: Figures, recipe: Recipe, models: Models) -> None:
    """Add notes for figures that are missing without an error."""
    if recipe.multi_label:
        figures.notes.append("Confusion and worst images are left out: an image may have several classes.")
    elif not figures.given:
        figures.notes.append(
            "Confusion and worst images are left out: the images have no labels or the student no head."
        )
    if models.method is not None and recipe.method != "scalekd":
        what = "no teacher" if recipe.method == "none" else "none of ScaleKD's projectors"
        figures.notes.append(f"The method {recipe.method} has {what}: their figures are left out.")


class _Gatherer:
    """Runs the models over the images and fills the figures."""

    def __init__(self, figures: Figures, models: Models, selection: ImageSelection) -> None:
        self.figures, self.models, self.selection = figures, models, selection
        self.labels = torch.from_numpy(selection.split.labels.astype(np.int64))
        classes = len(selection.split.classes)
        one_label = selection.split.sets is None
        self.asks_student = one_label and models.student is not None and 0 < models.student.num_classes == classes
        self.asks_teacher = one_label and models.teacher is not None and models.teacher.num_classes == classes > 0
        self.shares: list[tuple[int, Floats]] = []
        self.found: dict[str, dict[str, list[Tensor]]] = {}

    @torch.no_grad()
    def run(self, what: str, console: Console | None) -> None:
        """Run the models over all images."""
        figures, selection = self.figures, self.selection
        figures.of, figures.classes, figures.step = len(selection.split), selection.split.classes, self.models.step
        for batch in watched(selection.batches, what, console):
            if len(batch.images):
                with self.models.autocast():
                    self.add(batch.images.to(self.models.device), batch.labels)
        if not figures.images:
            raise UserError(f"data: none of {len(selection.indices)} images of {selection.split.root} can be read")
        self.conclude()

    def add(self, images: Tensor, indices: Tensor) -> None:
        """Add the figures of a batch `[B, 3, h, w]` of images with these indices in the split."""
        models, figures, labels = self.models, self.figures, self.labels[indices]
        figures.images += len(images)
        if self.asks_student and models.student is not None:
            figures.given += answers(models.student(images).cpu(), labels, indices)
        if models.teacher is None:
            return
        teacher_outputs = models.teacher(images)
        if self.asks_teacher and teacher_outputs.logits is not None:
            figures.teacher_given += answers(teacher_outputs.logits.cpu(), labels, indices)
        if not models.teacher.tokens.positions:
            return
        for some, tokens in zip(torch.split(images, _PART), torch.split(teacher_outputs.tokens, _PART), strict=True):
            self.shares.append((len(some), energy_shares(tokens, models.teacher.tokens)))
            if models.projectors is not None:
                self.compare(models.projectors, some, tokens)

    def compare(self, method: ScaleKD, images: Tensor, tokens: Tensor) -> None:
        """Add the distances of some images from the teacher's `tokens` for them."""
        for place, distances in compared(method, method.student(images), tokens).items():
            for name, values in distances.items():
                self.found.setdefault(place, {}).setdefault(name, []).append(values.cpu())

    def conclude(self) -> None:
        """Compute the figures that need all images."""
        figures, selection, method = self.figures, self.selection, self.models.projectors
        if self.shares:
            weights, shares = zip(*self.shares, strict=True)
            figures.spectrum = np.average(shares, axis=0, weights=weights)
        figures.distances = {
            place: {name: torch.cat(parts).flatten().numpy() for name, parts in found.items()}
            for place, found in self.found.items()
        }
        for answer in worst(figures.given, _WORST):
            image = selection.read(answer.image)
            if image is not None:
                figures.worst.append(Thumbnail(uri(thumbnail(image)), answer, selection.split.locate(answer.image)))
        if method is not None:
            self.attend()

    def attend(self) -> None:
        """Draw attention over some of the images."""
        method = self.models.projectors
        assert method is not None
        for image in map(self.selection.read, self.selection.chosen(ATTENDED)):
            if image is None:
                continue
            with self.models.autocast():
                overlays = attended(method, image, self.models.device)
            if not overlays:  # linear projectors have no attention
                return
            pictures = {name: (uri(mean), uri(central)) for name, (mean, central) in overlays.items()}
            self.figures.attended.append(Attended(uri(thumbnail(image)), pictures))
