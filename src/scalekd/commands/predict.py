"""`scalekd predict`: print the most probable classes of images."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from scalekd.commands.model import read_model
from scalekd.data import Files, Split, evaluation_loader
from scalekd.data.index import list_unlabelled
from scalekd.errors import UserError, printable
from scalekd.exports.onnx import OnnxClassifier
from scalekd.hardware import pick_compute
from scalekd.models import Classifier
from scalekd.models.memory_format import prepare_classifier
from scalekd.progress import watched
from scalekd.recipes import Recipe, load
from scalekd.runs.measured_settings import measured_as
from scalekd.tasks.distill.inputs import evaluation_images, whole_images

_TOP = 5  # classes of an image, if the user sets neither a number nor a threshold


class Prediction(NamedTuple):
    """A class and its probability."""

    name: str
    label: int
    probability: float


def run(
    model: str,
    images: Sequence[Path],
    flags: dict[str, Any],
    *,
    top: int | None,
    threshold: float | None,
    weights: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Print the classes of images; see the command for the arguments."""
    print_one = _print_json if as_json else _print_csv() if as_csv else _print_line
    missing: dict[str, str] = {}
    files = list_images(images)
    for file, best in predict(model, files, flags, missing, top=top, threshold=threshold, weights=weights):
        print_one(file, best)
    for file, reason in missing.items():
        typer.echo(f"cannot be read: {printable(file)}{f' ({reason})' if reason else ''}", err=True)
    if missing:
        typer.echo(f"{len(missing)} of {len(files)} images could not be read", err=True)
        raise typer.Exit(1)


def predict(
    model: str,
    files: list[str],
    flags: dict[str, Any],
    missing: dict[str, str],
    *,
    top: int | None = None,
    threshold: float | None = None,
    weights: Path | None = None,
) -> Iterator[tuple[str, list[Prediction]]]:
    """Yield each readable image and its most probable classes, in order.

    Args:
        model: As the user specified it.
        files: The images.
        flags: Keys that the user passed.
        missing: Images that cannot be read are added to it, with the reason.
        top: Number of classes, at most; by default 5, or all with a threshold.
        threshold: The least probability of a class.
        weights: A safetensors file for a name.

    Raises:
        UserError: For any wrong input.
    """
    if top is None and threshold is None:
        top = _TOP
    then = measured_as(model)
    recipe = load(None, then | flags)
    last = recipe.channels_last and "channels_last" in then
    classifier, answer = _open(model, weights, recipe, channels_last=last)
    if not classifier.num_classes:
        raise UserError(f"model: {classifier.name} has no head; `scalekd adapt` fits one")
    for index, logits in _predictions(classifier, answer, files, recipe, missing):
        probabilities = logits.sigmoid() if classifier.multi_label else logits.softmax(0)
        yield files[index], _best(probabilities, top, threshold, classifier.classes)


def list_images(places: Sequence[Path]) -> list[str]:
    """List images as specified, and those in folders.

    Raises:
        UserError: If a folder holds none.
    """
    return list(_find(places))


def _find(places: Sequence[Path]) -> Iterator[str]:
    """Yield files as specified, and the images in folders: recognised by extension, sorted, without hidden files."""
    for place in places:
        if not place.is_dir():
            yield str(place)  # missing files are reported with the unreadable ones
            continue
        listing = list_unlabelled(place)
        left_out = listing.skipped.described()
        if not len(listing.names):
            raise UserError(f"images: no images in {place}{f' ({left_out})' if left_out else ''}")
        if left_out:
            typer.echo(f"{printable(place)}: {left_out}", err=True)
        yield from (os.path.join(place, name) for name in listing.names)


def _open(
    model: str, weights: Path | None, recipe: Recipe, *, channels_last: bool
) -> tuple[Classifier | OnnxClassifier, Callable[[Tensor], Tensor]]:
    """Return the model, and a function from a batch on the CPU to its logits."""
    if model.endswith(".onnx"):
        if weights is not None:
            raise UserError("weights: only for a timm name; an .onnx file contains its weights")
        runtime = OnnxClassifier(Path(model))
        return runtime, runtime
    compute = pick_compute(recipe)
    classifier = read_model(model, weights).classifier.to(compute.device)
    prepare_classifier(classifier, *compute, channels_last=channels_last)

    def answer(batch: Tensor) -> Tensor:
        with compute.autocast():
            return classifier(batch.to(compute.device, non_blocking=True)).float().cpu()  # type: ignore[no-any-return]

    return classifier, answer


@torch.inference_mode()
def _predictions(
    classifier: Classifier | OnnxClassifier,
    answer: Callable[[Tensor], Tensor],
    files: list[str],
    recipe: Recipe,
    missing: dict[str, str],
) -> Iterator[tuple[int, Tensor]]:
    """Yield index and logits `[K]` of each readable image, in order; add the others to `missing` with a reason."""
    indices = np.arange(len(files), dtype=np.int32)  # used in place of labels
    split = Split(Files(Path(), files), indices, ())
    batch_size = recipe.batch
    if isinstance(classifier, OnnxClassifier) and classifier.takes_pixels:
        dataset = whole_images(recipe, split)
        batch_size = 1  # they have different sizes
    else:
        dataset = evaluation_images(
            recipe, split, resolution=classifier.resolution, crop_fraction=classifier.crop_fraction
        )
    # For few batches, starting processes costs more than it saves.
    workers = min(recipe.workers, len(files) // recipe.batch)
    for batch in watched(evaluation_loader(dataset, batch_size, workers), "predict"):
        missing |= batch.corrupt
        if len(batch.images):
            yield from zip(batch.labels.tolist(), answer(batch.images), strict=True)


def _best(probabilities: Tensor, top: int | None, threshold: float | None, classes: Sequence[str]) -> list[Prediction]:
    count = len(probabilities)
    values, indices = probabilities.topk(count if top is None else min(top, count))
    return [
        Prediction(classes[index] if classes else str(index), index, value)
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        if threshold is None or value >= threshold
    ]


def _print_line(file: str, best: list[Prediction]) -> None:
    named = "  ".join(f"{printable(p.name)} {100 * p.probability:.1f}%" for p in best)
    typer.echo(f"{printable(file)}  {named or '-'}")


def _print_json(file: str, best: list[Prediction]) -> None:
    predictions: list[dict[str, Any]] = [
        {"class": p.name, "index": p.label, "probability": round(p.probability, 6)} for p in best
    ]
    typer.echo(json.dumps({"image": file, "predictions": predictions}))


def _print_csv() -> Callable[[str, list[Prediction]], None]:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "index", "probability"))

    def write(file: str, best: list[Prediction]) -> None:
        for rank, p in enumerate(best, 1):
            writer.writerow((printable(file), rank, printable(p.name), p.label, f"{p.probability:.6f}"))

    return write
