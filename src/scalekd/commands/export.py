"""`scalekd export`: write a model in another format and compare its answers with the original's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import typer
from torch import Tensor

from scalekd.commands.model import Named, read_model
from scalekd.data import CorruptImages, in_order, read_split
from scalekd.data.skipped_files import left_out
from scalekd.errors import UserError
from scalekd.evaluation import main_metric
from scalekd.exports.compare import Agreement, agreement, pixel_agreement, time_ratio
from scalekd.exports.folding import Folded, fold
from scalekd.exports.hub import push_to_hub
from scalekd.exports.images import Images
from scalekd.exports.model_card import model_card
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.pixels import take_pixels
from scalekd.exports.program import ProgramClassifier, export_program
from scalekd.exports.quantise import quantise
from scalekd.exports.timm_folder import write_timm_folder
from scalekd.models import Classifier
from scalekd.models.folders import CONFIG, WEIGHTS
from scalekd.models.weights import Card, read_weights
from scalekd.progress import working
from scalekd.recipes import DATA_KEYS, Recipe, load, over_stored
from scalekd.runs.folder import RunFolder
from scalekd.tasks.distill.inputs import evaluation_images, whole_images

_NAMES = {"timm": "timm", "onnx": "student.onnx", "torch-export": "student.pt2"}
_CHECKED, _CALIBRATED = 48, 128
_RUN_KEYS = (*DATA_KEYS, "max_corrupt", "max_pixels", "data_patience")
_WRITTEN = (CONFIG, WEIGHTS, "README.md")


def run(
    model: str,
    *,
    format_: str,
    output: Path | None,
    weights: Path | None,
    opset: int | None,
    int8: bool,
    pixels: bool,
    hub: str | None,
    private: bool,
    overwrite: bool,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Write the model and print how well its answers agree; see the command for the arguments."""
    result, lines = export(
        model,
        format_=format_,
        output=output,
        weights=weights,
        opset=opset,
        int8=int8,
        pixels=pixels,
        hub=hub,
        private=private,
        overwrite=overwrite,
        flags=flags,
    )
    typer.echo(json.dumps(result) if as_json else "\n".join(lines))


def export(
    model: str,
    *,
    format_: str,
    output: Path | None,
    flags: dict[str, Any],
    weights: Path | None = None,
    opset: int | None = None,
    int8: bool = False,
    pixels: bool = False,
    hub: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Write the model; return what was checked, and the same in human-readable lines.

    See the command for the arguments.

    Raises:
        UserError: For any wrong input.
    """
    named = read_model(model, weights)
    target = _target(named, output, _NAMES[format_], overwrite=overwrite)
    keys = {} if named.run is None else named.run.stored_keys()
    recipe = load(None, over_stored(flags, keys, _RUN_KEYS))
    images = _validation_images(named.classifier, recipe, asked="data" in flags or int8)
    calibration = _calibration_images(named.classifier, recipe, images) if int8 and images is not None else None
    sample = list(_sample(images, named.classifier))
    with working("folding its branches"):
        folded = Folded(named.classifier, "") if format_ == "timm" else fold(named.classifier, sample)
    with working(f"writing {target}"):
        exported = _write(named, folded.classifier, format_, target, opset)
    with working("comparing its answers"):
        checked = agreement(named.classifier, exported, sample)
    result: dict[str, Any] = {"output": str(target), "checked": vars(checked)}
    result["checked"]["on"] = None if images is None else str(images.split.root)
    lines = [f"exported  {named.classifier} to {target}", f"checked   {_where(checked, images)}"]
    if folded.note:
        result["folded"] = folded.note
        lines.insert(1, f"folded    {folded.note}")
    if format_ == "onnx":
        with working("timing it"):
            result["time_ratio"] = time_ratio(folded.classifier, exported, _one_image(named.classifier))
        lines.append(
            f"time      onnxruntime takes {result['time_ratio']:.2f} of torch's time for one image "
            f"(CPU, float32, {torch.get_num_threads()} threads, median of 15 alternate runs)"
        )
    if images is not None and calibration is not None:
        result["int8"] = _quantise(
            named, full=exported, target=target, images=images, calibration=calibration, recipe=recipe
        )
        lines.append(_describe_int8(result["int8"]))
    if pixels:
        with working("adding the resizing"):
            files = [target, *([_int8_path(target)] if int8 else [])]
            result["pixels"] = _take_pixels(named, files, images, recipe)
        lines.append(_describe_pixels(result["pixels"]))
    if hub is not None:
        result["hub"] = push_to_hub(target, _WRITTEN, hub, private=private)
        lines.append(f"uploaded  {result['hub']}")
    return result, lines


def _target(named: Named, output: Path | None, name: str, *, overwrite: bool) -> Path:
    """Return the path to write.

    Raises:
        UserError: If it is not specified, or exists and must not be replaced.
    """
    if output is None and named.run is None:
        raise UserError("output: none is given; pass --output (it has a default for a run's folder only)")
    target = output or named.run.path / "export" / name  # type: ignore[union-attr]
    is_folder = name == "timm"
    if target.exists() and target.is_dir() != is_folder:
        wrong = f"a folder; name a file in it, such as {target / name}" if target.is_dir() else "a file; name a folder"
        raise UserError(f"output: {target} is {wrong}")
    if not is_folder and target.suffix != Path(name).suffix:
        raise UserError(f"output: {target} must end in {Path(name).suffix}")
    if is_folder and RunFolder(target).exists:
        raise UserError(f"output: {target} is a run's own folder; name one in it, such as {target / 'export' / name}")
    written = [target / file for file in _WRITTEN] if is_folder else [target, _int8_path(target)]
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"output: {above} is a file, not a folder; choose another path")
    existing = [path for path in written if path.exists()]
    if existing and not overwrite:
        raise UserError(f"output: {existing[0]} exists; add --overwrite to replace it")
    return target


def _int8_path(target: Path) -> Path:
    return target.with_suffix(f".int8{target.suffix}")


def _validation_images(classifier: Classifier, recipe: Recipe, *, asked: bool) -> Images | None:
    """Return the validation images; None if the user passed no data and the run's are missing or not labelled."""
    if recipe.data is None:
        if asked:
            raise UserError("data: none is given; pass --data (a folder with val/<class>/, or see docs/data.md)")
        return None
    try:
        return _images(classifier, recipe, recipe.val_split)
    except UserError:
        if asked:
            raise
        return None


def _images(classifier: Classifier, recipe: Recipe, split: str) -> Images:
    """Return a split's images, preprocessed as in the model's evaluation."""
    assert recipe.data is not None
    found = read_split(recipe.data, split, recipe)
    for line in left_out({split: found.skipped}):
        typer.echo(line, err=True)
    if sorted(classifier.classes) == sorted(found.classes):
        found = in_order(found, classifier.classes)
    return Images(
        evaluation_images(recipe, found, resolution=classifier.resolution, crop_fraction=classifier.crop_fraction)
    )


def _sample(images: Images | None, classifier: Classifier) -> Iterable[Tensor]:
    if images is not None:
        return images.sample(_CHECKED)
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, classifier.resolution, classifier.resolution, generator=generator)]


def _one_image(classifier: Classifier) -> Tensor:
    return torch.rand(1, 3, classifier.resolution, classifier.resolution)


def _where(checked: Agreement, images: Images | None) -> str:
    return f"{checked}; " + ("images are generated: no --data" if images is None else f"from {images.split.root}")


def _write(
    named: Named, folded: Classifier, format_: str, target: Path, opset: int | None
) -> Callable[[Tensor], Tensor]:
    """Write the export (for timm, with unfolded weights); return a function that runs the written file."""
    if format_ == "timm":
        digest = write_timm_folder(named.classifier, target, named.weights)
        (target / "README.md").write_text(model_card(named.classifier, digest, _records(named)), encoding="utf-8")
        plain = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(plain)
        mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        return lambda images: plain((images - mean) / std)
    if format_ == "onnx":
        export_onnx(folded, target, _card(named), opset)
        _int8_path(target).unlink(missing_ok=True)  # an earlier one belongs to the replaced file
        return OnnxClassifier(target)
    export_program(folded, target, _card(named))
    return ProgramClassifier(target)


def _card(named: Named) -> Card:
    """Return the card of the weights file, or a new one if it has none."""
    stored = read_weights(named.weights)[1] if named.weights is not None else None
    return stored or named.classifier.card()


def _records(named: Named) -> dict[str, Any] | None:
    """Return what the run recorded in addition to its weights: inputs, environment, result and recipe."""
    if named.run is None:
        return None
    run = named.run
    files = {"inputs": run.inputs, "environment": run.environment, "result": run.result}
    records = {key: json.loads(file.read_text("utf-8")) if file.is_file() else {} for key, file in files.items()}
    return records | {"recipe": run.stored_keys()}


def _calibration_images(classifier: Classifier, recipe: Recipe, images: Images) -> list[Tensor]:
    """Return training images in batches; they are read before anything is written, so that errors come first."""
    classifier.check_classes(images.split.classes)
    return list(_images(classifier, recipe, recipe.train_split).sample(_CALIBRATED))


def _quantise(
    named: Named,
    *,
    full: Callable[[Tensor], Tensor],
    target: Path,
    images: Images,
    calibration: list[Tensor],
    recipe: Recipe,
) -> dict[str, Any]:
    """Write the int8 model, calibrated on training images; measure it and the full model on validation images."""
    path = _int8_path(target)
    with working(f"calibrating {path}"):
        quantise(target, path, calibration, _card(named))
    small = OnnxClassifier(path)
    corrupt = CorruptImages(recipe.max_corrupt, partial(typer.echo, err=True))
    how: dict[str, Any] = {"workers": recipe.workers, "corrupt": corrupt}
    before, after = images.accuracy(full, "float32", **how), images.accuracy(small, "int8", **how)
    return {
        "output": str(path),
        after.metric: after.main,
        f"float32_{before.metric}": before.main,
        "images": after.images,
        "size_ratio": path.stat().st_size / target.stat().st_size,
        "time_ratio": time_ratio(full, small, _one_image(named.classifier)),
    }


def _take_pixels(named: Named, files: Sequence[Path], images: Images | None, recipe: Recipe) -> dict[str, Any]:
    """Add resizing and cropping to files, and compare the first with the model on whole images."""
    for file in files:
        take_pixels(file, _card(named))
    if images is None:
        return {"checked": None}
    whole = whole_images(recipe, images.split)
    pairs = images.pairs(_CHECKED, whole)
    return {"checked": vars(pixel_agreement(named.classifier, OnnxClassifier(files[0]), pairs))}


def _describe_pixels(result: dict[str, Any]) -> str:
    what = "takes uint8 RGB images of any size, [batch, height, width, 3]"
    if result["checked"] is None:
        return f"pixels    {what}; not checked: no --data"
    return f"pixels    {what}; resized by onnxruntime: {Agreement(**result['checked'])}"


def _describe_int8(result: dict[str, Any]) -> str:
    metric = main_metric(result)
    return (
        f"int8      {result['output']}: {metric} {result[metric]:.2f}% (float32 {result[f'float32_{metric}']:.2f}%) on "
        f"{result['images']} images; {result['size_ratio']:.2f} of the size and {result['time_ratio']:.2f} of the time "
        "of the float32 file"
    )
