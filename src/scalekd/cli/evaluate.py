"""`scalekd evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from scalekd.cli.options import MODEL, AsJson, Flags, ModelArgs, Weights, parse_mapping, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import DATA_KEYS, load


@with_recipe_flags(
    *DATA_KEYS, "resolution", "crop_fraction", "batch", "workers", "max_corrupt", "max_pixels",
    "data_patience", "precision", "accelerator",
    help_texts={
        "train_split": "--knn, --linear: name of the labelled split to fit on. Default: the run's, or train.",
        "val_split": "Name of the split that is measured. Default: the run's, or val.",
        "resolution": "Image side in pixels. Default: that of the run or the weights.",
        "crop_fraction": "Resize the short side to resolution / crop_fraction, then crop the centre. Default: that "
        "of the run or the weights.",
        "batch": "Number of images at once. Default: as many as the run measured at once, or 256.",
        "max_corrupt": "Number of unreadable images to skip before it stops.  [default: 10]",
        "precision": "Autocast type; auto uses bf16 if the hardware multiplies matrices in it. Default: the run's, "
        "or auto.",
    },
)  # fmt: skip
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL)],
    *,
    weights: Weights = None,
    model_args: ModelArgs = "{}",
    knn: Annotated[
        bool, typer.Option("--knn", help="Classify by nearest neighbours of frozen features instead.")
    ] = False,
    linear: Annotated[bool, typer.Option("--linear", help="Fit a linear probe on frozen features instead.")] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also print precision, recall and F1 of each class, and balanced top1.")
    ] = False,
    as_json: AsJson = False,
    flags: Flags,
) -> None:
    """Measure top-1 and top-5 accuracy on a split (val by default).

    A run folder specifies the data and the resolution, a weights file the resolution; flags specify the rest. --knn and
    --linear compare any number of models by their features: the models' heads are ignored, and the training split
    provides the labels.

    Examples:
        scalekd evaluate runs/mobilenet
        scalekd evaluate runs/mobilenet --per-class
        scalekd evaluate resnet18.a1_in1k --data IMAGENET --val-split val
        scalekd evaluate runs/mobilenet runs/alone --knn --linear
    """
    args = load(None, {"student_args": parse_mapping("model_args", model_args)}).student_args
    if len(models) > 1 and not (knn or linear):
        raise UserError(f"evaluate: {len(models)} models are compared by their features; add --knn or --linear")
    if len(models) > 1 and (weights is not None or args):
        raise UserError("weights: belong to one model; pass weights files or folders to compare several")
    if per_class and (knn or linear):
        raise UserError("per-class: is measured with a model's own head; leave out --knn and --linear, or --per-class")
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.evaluate import run

    run(models, weights=weights, args=args, knn=knn, linear=linear, per_class=per_class, as_json=as_json, flags=flags)
