"""`scalekd evaluate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import Flags, parse_mapping, with_recipe_flags
from scalekd.data import CorruptImages, evaluation_loader, in_order, read_split
from scalekd.errors import UserError, printable
from scalekd.evaluation import measure_accuracy
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.models import Classifier
from scalekd.models.sources import PYTHON
from scalekd.recipes import load
from scalekd.training import RunFolder
from scalekd.training.adapt import FILE as TEACHER_FILE
from scalekd.training.inputs import evaluation_images


@with_recipe_flags(
    "data",
    "val_split",
    "resolution",
    "crop_fraction",
    "batch",
    "workers",
    "max_corrupt",
    "max_pixels",
    "data_patience",
    "precision",
    "accelerator",
)
def evaluate(
    model: Annotated[str, typer.Argument(help="A run's or adapt's folder, a weights file, or a timm name.")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm name.")] = None,
    model_args: Annotated[str, typer.Option(help="Further arguments of timm.create_model, as YAML.")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    *,
    flags: Flags,
) -> None:
    """Measure top-1 and top-5 accuracy on a split (val by default).

    A run's folder brings its data and resolution along; a weights file its resolution. The rest are flags.
    """
    path = Path(model)
    folder = RunFolder(path.absolute().parent.parent if path.suffix == ".ckpt" and path.is_file() else path)
    if (path / TEACHER_FILE).is_file():  # what `adapt` leaves
        model = str(path / TEACHER_FILE)
    elif folder.path.is_dir():
        stored = folder.stored_keys()
        wanted = ("data", "val_split", "resolution", "crop_fraction", "precision")
        flags = {key: stored[key] for key in wanted if key in stored} | flags
        model, weights = str(folder.student), None
        student = str(stored.get("student"))
        if student.startswith(PYTHON):  # which only the recipe may name, not the weights
            model, weights = student, folder.student
    recipe = load(None, flags)
    if recipe.data is None:
        raise UserError("data: none is given; give --data (a folder with val/<class>/, or see docs/data.md)")
    split = read_split(recipe.data, recipe.val_split)
    classifier = Classifier(
        model,
        weights=weights,
        resolution=recipe.resolution if "resolution" in flags else None,
        **load(None, {"student_args": parse_mapping("model_args", model_args)}).student_args,
    )
    if sorted(classifier.classes) == sorted(split.classes):  # val alone may state another order than train
        split = in_order(split, classifier.classes)
    classifier.check_classes(split.classes)
    device = pick_device(recipe.accelerator)
    dtype = pick_dtype(recipe.precision, device)
    crop = recipe.crop_fraction if "crop_fraction" in flags else classifier.crop_fraction
    dataset = evaluation_images(recipe, split, resolution=classifier.resolution, crop_fraction=crop)
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    accuracy = measure_accuracy(
        classifier.to(device).eval(),
        watched(evaluation_loader(dataset, recipe.batch, recipe.workers, corrupt.report), "evaluate"),
        num_classes=classifier.num_classes,
        device=device,
        autocast=partial(autocast, device, dtype),
        corrupt=corrupt,
    )
    result = {"model": classifier.name, "top1": accuracy.top1, "top5": accuracy.top5, "images": accuracy.images}
    if as_json:
        typer.echo(json.dumps(result | {"corrupt_images": sorted(corrupt.paths)}))
        return
    top5 = "" if accuracy.top5 is None else f"  top5 {accuracy.top5:.2f}%"
    skipped = f", {len(corrupt.paths)} unreadable left out" if corrupt.paths else ""
    images = f"{accuracy.images} images of {printable(split.root)}{skipped}"
    typer.echo(f"{classifier.name}  top1 {accuracy.top1:.2f}%{top5}  ({images})")
