"""The figures that need a run's models and images; whatever is gone is left out, and a note says so."""

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
from scalekd.method import ScaleKD
from scalekd.planner import ModelCost, StepFlops, model_cost, step_flops
from scalekd.progress import watched, working
from scalekd.recipes import Recipe
from scalekd.report.answers import Answer, answers, worst
from scalekd.report.attended import ATTENDED, attended
from scalekd.report.pictures import thumbnail, uri
from scalekd.report.record import Record
from scalekd.report.restore import Models, Sample, read_sample, restore_models
from scalekd.report.spectra import Floats, compared, energy_shares
from scalekd.tasks.distill.measuring import measured_as

_WORST = 18
_PART = 16  # images whose distances are worked out at once


class Attended(NamedTuple):
    """An image and where projectors look in it, as data URIs.

    Attributes:
        image: The image.
        maps: By the projector's name: the mean over all queries, and the query in the middle of the grid.
    """

    image: str
    maps: dict[str, tuple[str, str]]


class Thumbnail(NamedTuple):
    """A wrongly named image."""

    picture: str
    answer: Answer
    path: str


@dataclass
class Figures:
    """What was measured; what is None or empty could not be.

    Attributes:
        notes: What was left out, and why.
        images: Images that were looked at.
        of: Images of their split.
        classes: Class names.
        student: Parameters and multiply-accumulates of the student.
        teacher: The same of the teacher.
        flops: FLOPs of a training step for one image.
        given: The student's answers.
        teacher_given: The teacher's.
        spectrum: Energy shares `[H, W]` of the teacher's tokens.
        distances: By place and by what is compared, the squared distances of all positions.
        step: The optimiser step that distances and attention are of.
        attended: Attention over some images.
        worst: The images that the student gets most wrong.
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
    """All figures of a run.

    Args:
        record: The run.
        count: Validation images to look at, spread evenly; 0 leaves out what needs images.
        console: Where progress is shown; standard error by default.
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
        sample = read_sample(recipe, models.student.classes if models.student else (), count)
        models.settle(channels_last=measured_as(record.folder.path).get("channels_last", False))
        _Gatherer(figures, models, sample).run(f"report {escape(record.name)}", console)
    except UserError as error:
        figures.notes.append(f"Figures that need images are left out: {error}.")
        return figures
    _compare_data(figures, record, sample)
    _explain(figures, recipe, models)
    return figures


def _count_costs(figures: Figures, models: Models) -> None:
    if models.method is not None:
        figures.flops = step_flops(models.method)
    if models.student is not None:
        figures.student = model_cost(models.student)
    if models.teacher is not None:
        figures.teacher = model_cost(models.teacher)


def _compare_data(figures: Figures, record: Record, sample: Sample) -> None:
    then = record.inputs.get("validation data")
    if len(sample.split.classes) and then not in (None, sample.split.fingerprint):
        figures.notes.append(
            f"The validation images are not those of the run ({then} then, {sample.split.fingerprint} now)."
        )
    if record.inputs and record.inputs.get("decoding") != DECODING:
        figures.notes.append("The run was trained by a version that reads some pictures otherwise, see docs/data.md.")


def _explain(figures: Figures, recipe: Recipe, models: Models) -> None:
    """Say why a figure is not there, where no error has."""
    if not figures.given:
        figures.notes.append(
            "Confusion and worst images are left out: the images have no labels or the student no head."
        )
    if models.method is not None and recipe.method != "scalekd":
        what = "no teacher" if recipe.method == "none" else "no projectors"
        figures.notes.append(f"The method {recipe.method} has {what}: the figures of those are left out.")


class _Gatherer:
    """Runs the models over the images and fills the figures."""

    def __init__(self, figures: Figures, models: Models, sample: Sample) -> None:
        self.figures, self.models, self.sample = figures, models, sample
        self.labels = torch.from_numpy(sample.split.labels.astype(np.int64))
        classes = len(sample.split.classes)
        self.asks_student = models.student is not None and 0 < models.student.num_classes == classes
        self.asks_teacher = models.teacher is not None and models.teacher.num_classes == classes > 0
        self.shares: list[tuple[int, Floats]] = []
        self.found: dict[str, dict[str, list[Tensor]]] = {}

    @torch.no_grad()
    def run(self, what: str, console: Console | None) -> None:
        """Look at all images."""
        figures, sample = self.figures, self.sample
        figures.of, figures.classes, figures.step = len(sample.split), sample.split.classes, self.models.step
        for batch in watched(sample.batches, what, console):
            if len(batch.images):
                with self.models.autocast():
                    self.look(batch.images.to(self.models.device), batch.labels)
        if not figures.images:
            raise UserError(f"data: none of {len(sample.indices)} images of {sample.split.root} can be read")
        self.conclude()

    def look(self, images: Tensor, indices: Tensor) -> None:
        """Take a batch `[B, 3, h, w]` of these indices into account."""
        models, figures, labels = self.models, self.figures, self.labels[indices]
        figures.images += len(images)
        if self.asks_student and models.student is not None:
            figures.given += answers(models.student(images).cpu(), labels, indices)
        if models.teacher is None:
            return
        taught = models.teacher(images)
        if self.asks_teacher and taught.logits is not None:
            figures.teacher_given += answers(taught.logits.cpu(), labels, indices)
        for some, tokens in zip(torch.split(images, _PART), torch.split(taught.tokens, _PART), strict=True):
            self.shares.append((len(some), energy_shares(tokens, models.teacher.tokens)))
            if models.projectors is not None:
                self.compare(models.projectors, some, tokens)

    def compare(self, method: ScaleKD, images: Tensor, tokens: Tensor) -> None:
        """Take the distances of some images from the teacher's `tokens` of them into account."""
        for place, distances in compared(method, method.student(images), tokens).items():
            for name, values in distances.items():
                self.found.setdefault(place, {}).setdefault(name, []).append(values.cpu())

    def conclude(self) -> None:
        """What needs all images."""
        figures, sample, method = self.figures, self.sample, self.models.projectors
        if self.shares:
            weights, shares = zip(*self.shares, strict=True)
            figures.spectrum = np.average(shares, axis=0, weights=weights)
        figures.distances = {
            place: {name: torch.cat(parts).flatten().numpy() for name, parts in found.items()}
            for place, found in self.found.items()
        }
        for answer in worst(figures.given, _WORST):
            image = sample.read(answer.image)
            if image is not None:
                figures.worst.append(Thumbnail(uri(thumbnail(image)), answer, sample.split.locate(answer.image)))
        if method is not None:
            self.attend()

    def attend(self) -> None:
        """Attention over some of the images."""
        method = self.models.projectors
        assert method is not None
        for image in map(self.sample.read, self.sample.chosen(ATTENDED)):
            if image is None:
                continue
            with self.models.autocast():
                looks = attended(method, image, self.models.device)
            pictures = {name: (uri(everywhere), uri(middle)) for name, (everywhere, middle) in looks.items()}
            self.figures.attended.append(Attended(uri(thumbnail(image)), pictures))
