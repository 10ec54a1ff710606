"""`scalekd export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import typer
from torch import Tensor

from scalekd.cli.model import HELP, Named, read_model
from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.data import read_split
from scalekd.errors import UserError
from scalekd.export.compare import Agreement, agreement, time_ratio
from scalekd.export.hub import push_to_hub
from scalekd.export.images import Images
from scalekd.export.model_card import model_card
from scalekd.export.onnx import OnnxClassifier, export_onnx
from scalekd.export.program import ProgramClassifier, export_program
from scalekd.export.quantise import quantise
from scalekd.export.timm_folder import write_timm_folder
from scalekd.models import Classifier
from scalekd.models.weights import Card, read_weights
from scalekd.recipes import Recipe, load

_NAMES = {"timm": "timm", "onnx": "student.onnx", "torch-export": "student.pt2"}
_CHECKED, _CALIBRATED = 48, 128
_RUN_KEYS = ("data", "train_split", "val_split", "max_corrupt")


@with_recipe_flags("data", "train_split", "val_split", "workers", "max_corrupt")
def export(
    model: Annotated[str, typer.Argument(help=HELP)],
    *,
    format_: Annotated[
        Literal["timm", "onnx", "torch-export"],
        typer.Option(
            "--format",
            help="timm: a folder for timm and the hub. onnx: a file, for onnxruntime say. torch-export: a .pt2 file.",
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="The folder or file to write. Default: in RUN/export.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm name.")] = None,
    opset: Annotated[int | None, typer.Option(help="onnx: version of the operators. Default: torch's choice.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also write FILE.int8.onnx, calibrated on training images.")
    ] = False,
    hub: Annotated[str | None, typer.Option("--push-to-hub", help="timm: upload it as USER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Whether a new repository of the hub is private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    flags: Flags,
) -> None:
    """Write a model for use elsewhere, and check that it answers as before on validation images.

    ONNX and .pt2 files take RGB images in [0, 1], [batch, 3, side, side]: their normalisation is inside. The images are
    those of --data, or of the run's own data. Without any, generated ones are taken and it is said.
    """
    if format_ != "onnx" and (int8 or opset is not None):
        raise UserError(f"format: --int8 and --opset are for onnx, not {format_}")
    if hub is not None and format_ != "timm":
        raise UserError(f"push_to_hub: uploads timm folders; give --format timm, not {format_}")
    named = read_model(model, weights)
    target = _target(named, output, _NAMES[format_], overwrite=overwrite)
    recipe = load(None, {k: named.keys[k] for k in _RUN_KEYS if k in named.keys} | flags)
    images = _validation_images(named.classifier, recipe, asked="data" in flags or int8)
    card = (read_weights(named.weights)[1] if named.weights is not None else None) or named.classifier.card()
    result: dict[str, Any] = {"output": str(target)}
    if format_ == "timm":
        exported: Callable[[Tensor], Tensor] = _export_timm(named, target, overwrite=overwrite)
    elif format_ == "onnx":
        result["opset"] = export_onnx(named.classifier, target, card, opset)
        exported = OnnxClassifier(target)
    else:
        export_program(named.classifier, target, card)
        exported = ProgramClassifier(target)
    checked = agreement(named.classifier, exported, _sample(images, named.classifier))
    lines = [f"exported  {named.classifier} to {target}", f"checked   {_where(checked, images)}"]
    result["checked"] = vars(checked) | {"on": None if images is None else str(images.split.root)}
    if format_ == "onnx":
        one = torch.rand(1, 3, named.classifier.resolution, named.classifier.resolution)
        result["time_ratio"] = time_ratio(named.classifier, exported, one)
        lines.append(
            f"time      onnxruntime takes {result['time_ratio']:.2f} of torch's time for one image "
            f"(CPU, float32, {torch.get_num_threads()} threads, median of 15 alternate runs)"
        )
    if int8 and images is not None:
        result["int8"] = _quantise(
            named.classifier, full=exported, target=target, card=card, images=images, recipe=recipe
        )
        lines.append(_describe_int8(result["int8"]))
    if hub is not None:
        result["hub"] = push_to_hub(target, hub, private=private)
        lines.append(f"uploaded  {result['hub']}")
    typer.echo(json.dumps(result) if as_json else "\n".join(lines))


def _target(named: Named, output: Path | None, name: str, *, overwrite: bool) -> Path:
    if output is None and named.run is None:
        raise UserError("output: none is given; give --output (it has a default for a run's folder only)")
    target = output or named.run.path / "export" / name  # type: ignore[union-attr]
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"output: {target} exists; add --overwrite to replace it")
    if name != "timm" and target.suffix != Path(name).suffix:
        raise UserError(f"output: {target} must end in {Path(name).suffix}")
    return target


def _validation_images(classifier: Classifier, recipe: Recipe, *, asked: bool) -> Images | None:
    """The validation images; None where the user asked for none and the run's own are gone or are not labelled."""
    if recipe.data is None or (not asked and not (recipe.data / recipe.val_split).is_dir()):
        if asked:
            raise UserError("data: none is given; give --data (a folder with train/<class>/ and val/<class>/)")
        return None
    return Images(read_split(recipe.data, recipe.val_split), classifier.resolution, classifier.crop_fraction)


def _sample(images: Images | None, classifier: Classifier) -> Iterable[Tensor]:
    if images is not None:
        return images.sample(_CHECKED)
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, classifier.resolution, classifier.resolution, generator=generator)]


def _where(checked: Agreement, images: Images | None) -> str:
    return f"{checked}; " + ("images are generated: no --data" if images is None else f"from {images.split.root}")


def _export_timm(named: Named, target: Path, *, overwrite: bool) -> Callable[[Tensor], Tensor]:
    """Write the folder; as plain timm loads it, it is what is compared."""
    if overwrite and target.is_dir():
        _clear(target)
    digest = write_timm_folder(named.classifier, target, named.weights)
    run = named.run
    left = None
    if run is not None:
        files = {"inputs": run.inputs, "environment": run.environment, "result": run.result}
        left = {key: json.loads(file.read_text("utf-8")) if file.is_file() else {} for key, file in files.items()}
        left["recipe"] = named.keys
    (target / "README.md").write_text(model_card(named.classifier, digest, left), encoding="utf-8")
    plain = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    return lambda images: plain(named.classifier.prepare(images))  # type: ignore[no-any-return]


def _clear(folder: Path) -> None:
    """Delete an earlier export, and nothing else: folders that hold other things are left alone."""
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _WRITTEN)
    if foreign:
        raise UserError(f"output: {folder} holds {foreign[0]}, which no export wrote; give another folder")
    shutil.rmtree(folder)


_WRITTEN = ("config.json", "model.safetensors", "README.md")


def _quantise(
    classifier: Classifier,
    *,
    full: Callable[[Tensor], Tensor],
    target: Path,
    card: Card,
    images: Images,
    recipe: Recipe,
) -> dict[str, Any]:
    """Write the int8 model; calibrated on training images, measured on validation images beside the full one."""
    assert recipe.data is not None
    classifier.check_classes(images.split.classes)
    training = Images(read_split(recipe.data, recipe.train_split), classifier.resolution, classifier.crop_fraction)
    path = target.with_suffix(".int8.onnx")
    quantise(target, path, training.sample(_CALIBRATED), card)
    small = OnnxClassifier(path)
    how: dict[str, Any] = {"workers": recipe.workers, "max_corrupt": recipe.max_corrupt}
    before, after = images.accuracy(full, "float32", **how), images.accuracy(small, "int8", **how)
    one = torch.rand(1, 3, classifier.resolution, classifier.resolution)
    return {
        "output": str(path),
        "top1": after.top1,
        "float32_top1": before.top1,
        "images": after.images,
        "size_ratio": path.stat().st_size / target.stat().st_size,
        "time_ratio": time_ratio(full, small, one),
    }


def _describe_int8(result: dict[str, Any]) -> str:
    return (
        f"int8      {result['output']}: top1 {result['top1']:.2f}% (float32 {result['float32_top1']:.2f}%) on "
        f"{result['images']} images; {result['size_ratio']:.2f} of the size and {result['time_ratio']:.2f} of the time "
        "of the float32 file"
    )
