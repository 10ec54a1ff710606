"""`scalekd evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scalekd.cli.options import Flags, parse_mapping, with_recipe_flags
from scalekd.data import (
    Batch,
    CorruptImages,
    ReplayDataset,
    Split,
    evaluation_loader,
    evaluation_transform,
    read_split,
    read_splits,
)
from scalekd.errors import UserError
from scalekd.evaluation import (
    NEIGHBOURS,
    Features,
    collect_features,
    knn_accuracy,
    linear_accuracy,
    measure_accuracy,
)
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.models import Classifier
from scalekd.models.sources import PYTHON
from scalekd.recipes import Recipe, load
from scalekd.training import RunFolder
from scalekd.training.adapt import FILE as TEACHER_FILE


@with_recipe_flags(
    "data", "train_split", "val_split", "resolution", "crop_fraction", "batch", "workers", "max_corrupt", "precision",
    "accelerator",
)  # fmt: skip
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="A run's or adapt's folder, a weights file, or a timm name.")
    ],
    *,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm name.")] = None,
    model_args: Annotated[str, typer.Option(help="Further arguments of timm.create_model, as YAML.")] = "{}",
    knn: Annotated[bool, typer.Option("--knn", help="Nearest neighbours on frozen features instead.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="A linear probe on frozen features instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    flags: Flags,
) -> None:
    """Measure top-1 and top-5 accuracy on a split (val by default).

    A run's folder brings its data and resolution along; a weights file its resolution. The rest are flags. With --knn
    or --linear any number of models is compared by their features: their heads are left out, the training split says
    which class is where.
    """
    args = load(None, {"student_args": parse_mapping("model_args", model_args)}).student_args
    if not (knn or linear):
        if len(models) > 1:
            raise UserError(f"evaluate: {len(models)} models are compared by their features; add --knn or --linear")
        _measure(_Named.find(models[0], weights, flags), args, as_json=as_json)
        return
    if len(models) > 1 and (weights is not None or args):
        raise UserError("weights: are of one model; name weights files or folders to compare several")
    _compare([_Named.find(model, weights, flags) for model in models], args, knn=knn, linear=linear, as_json=as_json)


@dataclass
class _Named:
    """A model as the user names it, and what that stands for."""

    given: str
    model: str
    weights: Path | None
    keys: dict[str, Any]  # flags, and below them what a run's folder says

    @classmethod
    def find(cls, given: str, weights: Path | None, flags: Flags) -> _Named:
        path = Path(given)
        folder = RunFolder(path.parents[1] if path.suffix == ".ckpt" and path.is_file() else path)
        if (path / TEACHER_FILE).is_file():  # what `adapt` leaves
            return cls(given, str(path / TEACHER_FILE), weights, flags)
        if not folder.path.is_dir():
            return cls(given, given, weights, flags)
        stored = folder.stored_keys()
        wanted = ("data", "train_split", "val_split", "resolution", "crop_fraction", "precision")
        keys = {key: stored[key] for key in wanted} | flags
        if str(stored["student"]).startswith(PYTHON):  # which only the recipe may name, not the weights
            return cls(given, stored["student"], folder.student, keys)
        return cls(given, str(folder.student), None, keys)

    def build(self, recipe: Recipe, args: dict[str, Any]) -> tuple[Classifier, float]:
        """The model, and the share of the image that it is to look at."""
        resolution = recipe.resolution if "resolution" in self.keys else None
        classifier = Classifier(self.model, weights=self.weights, resolution=resolution, **args)
        return classifier, recipe.crop_fraction if "crop_fraction" in self.keys else classifier.crop_fraction


def _measure(named: _Named, args: dict[str, Any], *, as_json: bool) -> None:
    """Print the accuracy of a model's own head."""
    recipe = load(None, named.keys)
    if recipe.data is None:
        raise UserError("data: none is given; give --data (a folder with val/<class>/)")
    split = read_split(recipe.data, recipe.val_split)
    classifier, crop = named.build(recipe, args)
    classifier.check_classes(split.classes)
    device = pick_device(recipe.accelerator)
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    accuracy = measure_accuracy(
        classifier.to(device).eval(),
        _batches(split, classifier, crop, recipe, "evaluate"),
        num_classes=classifier.num_classes,
        device=device,
        autocast=partial(autocast, device, pick_dtype(recipe.precision, device)),
        corrupt=corrupt,
    )
    result = {"model": classifier.name, "top1": accuracy.top1, "top5": accuracy.top5, "images": accuracy.images}
    if as_json:
        typer.echo(json.dumps(result | {"corrupt_images": sorted(corrupt.paths)}))
        return
    top5 = "" if accuracy.top5 is None else f"  top5 {accuracy.top5:.2f}%"
    skipped = f", {len(corrupt.paths)} unreadable left out" if corrupt.paths else ""
    images = f"{accuracy.images} images of {split.root}{skipped}"
    typer.echo(f"{classifier.name}  top1 {accuracy.top1:.2f}%{top5}  ({images})")


def _compare(models: Sequence[_Named], args: dict[str, Any], *, knn: bool, linear: bool, as_json: bool) -> None:
    """Print what each model's features are worth, all on the data of the first that brings some along."""
    data = next((named.keys["data"] for named in models if "data" in named.keys), None)
    if data is None:
        raise UserError("data: none is given; give --data (a folder with train/<class>/ and val/<class>/)")
    rows = []
    for named in models:
        train, val = _features(named, load(None, named.keys | {"data": data}), args)
        row = {"model": named.given, "features": train.values.shape[1]}
        row |= {"knn": knn_accuracy(train, val)} if knn else {}
        row |= {"linear": linear_accuracy(train, val)} if linear else {}
        rows.append(row | {"training_images": len(train.labels), "images": len(val.labels)})
    if as_json:
        typer.echo(json.dumps({"data": str(data), "models": rows}))
        return
    titles = {"knn": f"{NEIGHBOURS}-NN top1", "linear": "linear probe top1"}
    shown = [name for name in titles if name in rows[0]]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in ("features", *(titles[name] for name in shown)):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["model"], str(row["features"]), *(f"{row[name]:.2f}%" for name in shown))
    Console(width=200).print(table)
    typer.echo(f"fitted on {rows[0]['training_images']}, measured on {rows[0]['images']} images of {data}")


def _features(named: _Named, recipe: Recipe, args: dict[str, Any]) -> tuple[Features, Features]:
    """A model's features of the training and of the validation images, neither of them augmented."""
    assert recipe.data is not None
    splits = read_splits(recipe.data, recipe.train_split, recipe.val_split)
    classifier, crop = named.build(recipe, args)
    device = pick_device(recipe.accelerator)
    cast = partial(autocast, device, pick_dtype(recipe.precision, device))
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    classifier.to(device).eval()
    train, val = (
        Features(
            *collect_features(
                classifier.features,
                _batches(split, classifier, crop, recipe, named.given),
                device=device,
                autocast=cast,
                corrupt=corrupt,
            )
        )
        for split in splits
    )
    return train, val


def _batches(split: Split, classifier: Classifier, crop: float, recipe: Recipe, what: str) -> Iterable[Batch]:
    dataset = ReplayDataset(split, evaluation_transform(classifier.resolution, crop))
    return watched(evaluation_loader(dataset, recipe.batch, recipe.workers), what)
