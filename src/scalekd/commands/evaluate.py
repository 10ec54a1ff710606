"""`scalekd evaluate`: measure models on a split, by their heads or by their features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from scalekd.commands.model import find_run, read_model
from scalekd.data import (
    Batch,
    CorruptImages,
    Key,
    Split,
    evaluation_loader,
    in_order,
    read_split,
    read_splits,
    refuse_shared,
)
from scalekd.data.skipped_files import left_out
from scalekd.data.worker_restarts import RestartingLoader
from scalekd.errors import UserError, printable
from scalekd.evaluation import (
    NEIGHBOURS,
    Features,
    collect_features,
    knn_accuracy,
    linear_accuracy,
    measure_accuracy,
)
from scalekd.evaluation.per_class import ClassCounts, ClassFigures, balanced_accuracy
from scalekd.hardware import Compute, pick_compute
from scalekd.models import Classifier
from scalekd.models.memory_format import prepare_classifier
from scalekd.models.weights import EXPORTED, read_weights
from scalekd.progress import watched, working
from scalekd.recipes import DATA_KEYS, Recipe, load, over_stored
from scalekd.runs.measured_settings import measured_as
from scalekd.tasks.distill.inputs import evaluation_images

_SHOWN = 10  # classes to list in a line
_NO_DATA = "data: none is given; pass --data (a folder with {splits}, or see docs/data.md)"
_SHARED = (*DATA_KEYS, "precision")  # settings that compared models must share
_OF_THE_RUN = (*DATA_KEYS, "resolution", "crop_fraction", "precision")


def run(
    models: Sequence[str],
    *,
    weights: Path | None,
    args: dict[str, Any],
    knn: bool,
    linear: bool,
    per_class: bool,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Print the accuracy of models; see the command for the arguments."""
    if knn or linear:
        subjects = [_Subject.find(model, weights, args, flags) for model in models]
        _compare(subjects, knn=knn, linear=linear, as_json=as_json)
        return
    measured = measure(models[0], weights=weights, args=args, flags=flags)
    if as_json:
        balanced = {} if measured.top1 is None else {"balanced_top1": measured.balanced_top1}
        classes = {**balanced, "per_class": [asdict(each) for each in measured.per_class]}
        typer.echo(json.dumps(measured.as_dict() | (classes if per_class else {})))
        return
    typer.echo(str(measured))
    if per_class:
        _print_classes(measured)


@dataclass(frozen=True)
class Measured:
    """The accuracy of a model's own head; `str(measured)` is human-readable.

    Attributes:
        model: The model's name.
        figures: Its figures in percent: `top1` and, for more than five classes, `top5`; with several labels per image
            `map` and `f1`.
        images: Number of images that were measured.
        data: Where they are.
        corrupt_images: Files that could not be read.
        classes: The classes of the data, in the model's order.
        classes_of_model: Number of the model's classes.
        per_class: Precision, recall and F1 of each of the model's classes.
    """

    model: str
    figures: dict[str, float]
    images: int
    data: str
    corrupt_images: tuple[str, ...]
    classes: tuple[str, ...]
    classes_of_model: int
    per_class: tuple[ClassFigures, ...]

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy in percent; None with several labels per image."""
        return self.figures.get("top1")

    @property
    def top5(self) -> float | None:
        """Top-5 accuracy in percent; None for fewer than six classes and with several labels per image."""
        return self.figures.get("top5")

    @property
    def balanced_top1(self) -> float:
        """Mean recall of the classes that have images, in percent."""
        return balanced_accuracy(self.per_class)

    def __str__(self) -> str:
        figures = "  ".join(f"{name} {value:.2f}%" for name, value in self.figures.items())
        skipped = f", {len(self.corrupt_images)} unreadable left out" if self.corrupt_images else ""
        images = f"{self.images} images of {printable(self.data)}{skipped}"
        return f"{self.model}  {figures}  ({images})"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; the classes only if the data has a part of the model's."""
        part = ("classes", "classes_of_model") if len(self.classes) < self.classes_of_model else ()
        names = ("images", *part, "corrupt_images")
        return {
            "model": self.model,
            "top1": self.top1,
            "top5": self.top5,
            **self.figures,
            **{name: getattr(self, name) for name in names},
        }


@dataclass(frozen=True)
class _Subject:
    """A model to be measured.

    Attributes:
        given: The model as the user specified it, or a module.
        weights: A weights file for a name, if any.
        args: Further arguments of the builder.
        keys: The flags; for other keys, the values of the run folder.
        then: The settings with which the run measured it, see `measured_as`.
    """

    given: str | nn.Module
    weights: Path | None
    args: dict[str, Any]
    keys: dict[str, Any]
    then: dict[str, Any]

    @classmethod
    def find(
        cls, given: str | nn.Module, weights: Path | None, args: dict[str, Any], flags: dict[str, Any]
    ) -> _Subject:
        if isinstance(given, nn.Module):
            return cls(given, weights, args, flags, {})
        if "/" in given and ":" not in given and not Path(given).exists():  # reported before any other error
            raise UserError(f"model: no such file or folder: {given}")
        if given.endswith(EXPORTED):
            read_weights(given)  # raises with the reason
        run = find_run(given)
        stored = {} if run is None else run.stored_keys()
        then = measured_as(given)
        return cls(given, weights, args, then | over_stored(flags, stored, _OF_THE_RUN), then)

    def build(self, recipe: Recipe, compute: Compute) -> tuple[Classifier, float]:
        """Return the model on its device, in the memory layout of its training, and its crop fraction."""
        resolution = recipe.resolution if "resolution" in self.keys else None
        if isinstance(self.given, nn.Module):
            classifier = Classifier(deepcopy(self.given), resolution=resolution).eval()
        else:
            classifier = read_model(self.given, self.weights, resolution=resolution, args=self.args).classifier
        last = recipe.channels_last and "channels_last" in self.keys
        prepare_classifier(classifier.to(compute.device), *compute, channels_last=last)
        return classifier, recipe.crop_fraction if "crop_fraction" in self.keys else classifier.crop_fraction


def measure(
    model: str | nn.Module,
    *,
    weights: Path | None = None,
    args: dict[str, Any] | None = None,
    flags: dict[str, Any],
    split: Split | None = None,
) -> Measured:
    """Measure the accuracy of a model's own head; remarks are printed to standard error.

    Args:
        model: As the user specified it, or a module.
        weights: A safetensors file for a name.
        args: Further arguments of the builder.
        flags: Keys that the user passed.
        split: The images, if they are not those of the key `data`.

    Raises:
        UserError: For any wrong input.
    """
    subject = _Subject.find(model, weights, args or {}, flags)
    recipe = load(None, subject.keys)
    if split is None:
        if recipe.data is None:
            raise UserError(_NO_DATA.format(splits="val/<class>/"))
        split = read_split(recipe.data, recipe.val_split, recipe)
        for line in left_out({recipe.val_split: split.skipped}):
            typer.echo(line, err=True)
    compute = pick_compute(recipe)
    classifier, crop = subject.build(recipe, compute)
    if classifier.multi_label and split.sets is None:
        raise UserError(
            f"model: {classifier.name} gives an image several labels; pass --multi-label, and a list of such images as "
            "--data"
        )
    if classifier.classes and not classifier.multi_label and split.sets is not None:
        raise UserError(f"model: {classifier.name} gives an image one label; leave out --multi-label")
    known = classifier.classes or classifier.imagenet_classes(split.classes)
    occurring = [name for name in known if name in split.classes]
    if len(occurring) == len(split.classes):  # the model knows all classes of the split, in any order
        split = in_order(split, known)
    classifier.check_classes(split.classes)
    if recipe.batch != subject.then.get("batch", recipe.batch):
        typer.echo(
            f"batch: {recipe.batch} images at once, {subject.then['batch']} when its run measured them: bf16 "
            "rounding differs, which may change the answer for an image or two",
            err=True,
        )
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    counts = ClassCounts(classifier.num_classes, compute.device)
    accuracy = measure_accuracy(
        classifier,
        watched(_batches(split, classifier, crop, recipe, corrupt), "evaluate"),
        num_classes=classifier.num_classes,
        compute=compute,
        corrupt=corrupt,
        multi_label=split.sets is not None,
        further=counts,
    )
    if len(occurring) < len(known):
        absent = [name for name in known if name not in occurring]
        typer.echo(
            f"classes: the data has {len(occurring)} of the model's {len(known)}, measured by name: "
            f"{_listed(occurring)}. The model may answer with the others too: {_listed(absent)}",
            err=True,
        )
    return Measured(
        model=classifier.name,
        figures=accuracy.figures,
        images=accuracy.images,
        data=str(split.root),
        corrupt_images=tuple(sorted(corrupt.paths)),
        classes=tuple(occurring),
        classes_of_model=len(known),
        per_class=counts.figures(known or split.classes),
    )


def _print_classes(measured: Measured) -> None:
    """Print precision, recall and F1 of each class, the lowest F1 first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for title in ("images", "precision", "recall", "F1"):
        table.add_column(title, justify="right")
    for each in sorted(measured.per_class, key=lambda each: -1.0 if each.f1 is None else each.f1):
        figures = ("-" if value is None else f"{value:.1f}%" for value in (each.precision, each.recall, each.f1))
        table.add_row(Text(printable(each.name)), str(each.images), *figures)
    Console(width=200).print(table)
    if measured.top1 is None:
        typer.echo("a class is an answer where its probability is above 0.5")
    else:
        typer.echo(f"balanced top1 {measured.balanced_top1:.2f}% (mean recall of the classes that have images)")


def _listed(names: Sequence[str]) -> str:
    """Format the first names, and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def _compare(subjects: Sequence[_Subject], *, knn: bool, linear: bool, as_json: bool) -> None:
    """Print the accuracy with each model's features, all on the data of the first model that specifies data."""
    if any(subject.keys.get("multi_label") for subject in subjects):
        raise UserError("knn: neighbours and probes are for one label per image; leave out --knn and --linear")
    shared = next(({key: s.keys[key] for key in _SHARED if key in s.keys} for s in subjects if "data" in s.keys), None)
    if shared is None:
        raise UserError(_NO_DATA.format(splits="train/<class>/ and val/<class>/"))
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        train, val = _features(
            subject, load(None, {key: value for key, value in subject.keys.items() if key not in _SHARED} | shared)
        )
        if knn and len(train.labels) < NEIGHBOURS:
            typer.echo(
                f"knn: {len(train.labels)} training images are fewer than the {NEIGHBOURS} neighbours that vote: each "
                "answer is a vote of all of them, mostly for the most frequent class",
                err=True,
            )
        row: dict[str, Any] = {"model": str(subject.given), "features": train.values.shape[1]}
        with working(f"{subject.given}: fitting on {len(train.labels)} images"):
            row |= {"knn": knn_accuracy(train, val)} if knn else {}
            row |= {"linear": linear_accuracy(train, val)} if linear else {}
        rows.append(row | {"training_images": len(train.labels), "images": len(val.labels)})
    if as_json:
        typer.echo(json.dumps({"data": str(shared["data"]), "models": rows}))
    else:
        _print(rows, str(shared["data"]))


def _print(rows: Sequence[dict[str, Any]], data: str) -> None:
    titles = {"knn": f"{NEIGHBOURS}-NN top1", "linear": "linear probe top1"}
    shown = [name for name in titles if name in rows[0]]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in ("features", *(titles[name] for name in shown)):
        table.add_column(title, justify="right")
    for row in rows:
        figures = (f"{row[name]:.2f}%" for name in shown)
        table.add_row(Text(printable(row["model"])), str(row["features"]), *figures)
    Console(width=200).print(table)
    typer.echo(f"fitted on {rows[0]['training_images']}, measured on {rows[0]['images']} images of {printable(data)}")


def _features(subject: _Subject, recipe: Recipe) -> tuple[Features, Features]:
    """Return a model's features of the training and validation images, without augmentation."""
    assert recipe.data is not None
    splits = read_splits(recipe.data, recipe.train_split, recipe.val_split, recipe)
    refuse_shared(*splits, (recipe.train_split, recipe.val_split))
    for line in left_out({recipe.train_split: splits[0].skipped, recipe.val_split: splits[1].skipped}):
        typer.echo(line, err=True)
    compute = pick_compute(recipe)
    classifier, crop = subject.build(recipe, compute)
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    train, val = (
        Features(
            *collect_features(
                classifier.features,
                watched(_batches(split, classifier, crop, recipe, corrupt), str(subject.given)),
                compute=compute,
                corrupt=corrupt,
            )
        )
        for split in splits
    )
    return train, val


def _batches(
    split: Split, classifier: Classifier, crop: float, recipe: Recipe, corrupt: CorruptImages
) -> RestartingLoader[Batch, Key]:
    dataset = evaluation_images(recipe, split, resolution=classifier.resolution, crop_fraction=crop)
    return evaluation_loader(dataset, recipe.batch, recipe.workers, corrupt.report)
