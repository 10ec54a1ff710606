"""What the commands do, as functions: each takes recipe keys as keyword arguments and returns its result.

Progress and remarks go to standard error. Wrong input raises a `UserError` of one line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import nn

from scalekd.commands import adapt as adapt_command
from scalekd.commands import evaluate as evaluate_command
from scalekd.commands import export as export_command
from scalekd.commands import predict as predict_command
from scalekd.commands.evaluate import Measured
from scalekd.commands.model import read_model
from scalekd.commands.predict import Prediction
from scalekd.data.sources.objects import ImageDataset, read_object, read_objects
from scalekd.data.split import Split
from scalekd.engine.launcher import launched
from scalekd.errors import UserError
from scalekd.models.folders import TEACHER
from scalekd.models.sources import MODULE
from scalekd.models.weights import read_weights
from scalekd.progress import plain_lines
from scalekd.recipes import Recipe, load, load_resumed
from scalekd.recipes.command_options import ADAPT, check_format, check_mode
from scalekd.report.live import live_figures
from scalekd.runs.folder import RunFolder
from scalekd.tasks.distill import distill as distill_run
from scalekd.tasks.distill import fill_cache
from scalekd.tasks.distill.given import Given
from scalekd.tasks.distill.inputs import count_images

Model = str | Path | nn.Module
Data = str | Path


@dataclass(frozen=True)
class Distilled:
    """A finished run.

    Attributes:
        student: The trained model on the CPU, in eval mode, without the image normalisation: a plain timm model if it
            was named or passed as one.
        folder: The run's folder; commands such as `scalekd report` take it.
        weights: The student's weights file.
        top1: Accuracy on the validation images in percent; None if it was not measured.
        top5: The same for the five most probable classes; None for fewer than six classes.
        map: Mean average precision in percent with several labels per image (`multi_label`), where there is no top-1.
        result: The content of `result.json`: accuracies, time, energy and more.
        curves: The content of `metrics.jsonl`: what was logged, a dictionary for each logged step or validation.
    """

    student: nn.Module
    folder: Path
    weights: Path
    top1: float | None
    top5: float | None
    map: float | None
    result: dict[str, Any]
    curves: list[dict[str, Any]]


@dataclass(frozen=True)
class Adapted:
    """A teacher with a head for the classes of the data.

    Attributes:
        weights: Its weights file, for `teacher` of `distill`.
        top1: Its accuracy on the validation images in percent; None with several labels per image.
        map: Its mean average precision with several labels per image.
        result: What else the command prints with `--json`.
    """

    weights: Path
    top1: float | None
    map: float | None
    result: dict[str, Any]


@dataclass(frozen=True)
class Predicted:
    """The most probable classes of images.

    Attributes:
        classes: For each readable image a list of `Prediction` (name, label, probability), the most probable first.
        unreadable: For each image that cannot be read the reason, if it is known.
    """

    classes: dict[str, list[Prediction]]
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Exported:
    """A model in another format.

    Attributes:
        path: The file or folder.
        result: How well its answers agree with the model's, and what else the command prints with `--json`.
    """

    path: Path
    result: dict[str, Any]


def distill(
    *,
    data: Data | tuple[ImageDataset, ImageDataset],
    output: str | Path,
    student: Model | None = None,
    teacher: Model | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **keys: Any,
) -> Distilled:
    """Train a student, with a teacher or (`method="none"`) on labels only, as `scalekd distill` does.

    Args:
        data: A folder or another source, as for the command; or a training and a validation data set, whose images are
            neither augmented nor normalised (see `ImageDataset`).
        output: Folder for weights, logs and checkpoints.
        student: A name or file as for the command, or a module, of which a copy is trained. Default: the recipe's.
        teacher: A name, file or folder as for the command, or a module (one of timm's teachers, or
            any with `teacher_tokens`), of which a copy is used. Default: the recipe's.
        recipe: Name of a shipped recipe, or a YAML file.
        resume: Whether to resume the run in `output`; pass the same objects again.
        overwrite: Whether to delete a run that is in `output`.
        quiet: Whether to print nothing.
        keys: Recipe keys (docs/keys.md), such as `epochs=20`.

    Raises:
        UserError: For any wrong input.
    """
    datasets = None if isinstance(data, str | Path) else data
    if datasets is not None and (not isinstance(datasets, tuple) or len(datasets) != 2 or datasets[0] is datasets[1]):
        raise UserError("data: pass a path, or a pair of two different data sets: (training, validation)")
    if datasets is not None and keys.get("multi_label"):
        raise UserError("multi_label: several labels per image are read from lists; an item of a data set has one")
    if datasets is not None and keys.get("cache") is not None:
        raise UserError("cache: stores the outputs for images in files; a data set object has none, so leave cache out")
    given = Given(
        None if datasets is None else read_objects(*datasets),
        teacher if isinstance(teacher, nn.Module) else None,
        student if isinstance(student, nn.Module) else None,
    )
    models = {"student": student, "teacher": teacher}
    named: dict[str, Any] = {role: _name(model) for role, model in models.items() if model is not None}
    named |= {} if datasets is not None else {"data": str(data)}
    for role in ("teacher", "student"):  # a module is as it is: what a recipe says of its role is for a named one
        if isinstance(models[role], nn.Module):
            named |= {f"{role}_args": {}, f"{role}_weights": None}
    if isinstance(teacher, nn.Module):
        named |= {"teacher_tokens": None, "teacher_tail": ()}
    folder = RunFolder(output)
    console = Console(stderr=True, quiet=quiet)
    count = count_images if given.splits is None else partial(_length, given.splits[0])
    if resume:
        settings = load_resumed(recipe, folder.stored_keys(), named | keys, plain_lines(console))
    else:
        settings = load(recipe, named | keys, plain_lines(console), count)
    if settings.devices > 1 and not launched():
        raise UserError("devices: a call trains in its own process; start the script with torchrun, or use the command")
    result = distill_run(
        settings,
        folder.path,
        resume=resume,
        overwrite=overwrite,
        console=console,
        live=live_figures,
        given=given,
        resume_with=f"scalekd.distill(..., output={str(folder.path)!r}, resume=True)",
    )
    curves = [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]
    measured = {name: result.get(name) for name in ("top1", "top5", "map")}
    trained = _trained(student, folder)
    return Distilled(trained, folder.path, folder.student, result=result, curves=curves, **measured)


def _length(split: Split, _recipe: Recipe) -> int:
    return len(split)


def _name(model: Model) -> str:
    """Return the name of a model in a recipe."""
    if not isinstance(model, nn.Module):
        return str(model)
    return MODULE + str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__)


def _trained(student: Model | None, folder: RunFolder) -> nn.Module:
    """Return the student of a run: as named, or a copy of the module with the trained weights."""
    if not isinstance(student, nn.Module):
        module: nn.Module = read_model(str(folder.path)).classifier.model
        return module
    trained = deepcopy(student).cpu()
    trained.load_state_dict(read_weights(folder.student)[0])
    return trained.eval()


def adapt(
    teacher: str | Path,
    *,
    data: Data,
    output: str | Path,
    mode: Literal["probe", "finetune"] = "probe",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **keys: Any,
) -> Adapted:
    """Fit a head for the classes of the data to a teacher, or fine-tune it, as `scalekd adapt` does.

    Args:
        teacher: A timm name, a weights file written by scalekd, or a folder of a run.
        data: A folder or another source, as for the command.
        output: Folder for `teacher.safetensors`.
        mode: `probe` fits a linear head on frozen features, `finetune` trains the whole model.
        resume: Whether to resume the fine-tuning in `output`.
        overwrite: Whether to replace the result in `output`.
        quiet: Whether to print nothing.
        keys: Recipe keys, such as `resolution=224`.

    Raises:
        UserError: For any wrong input.
    """
    check_mode(mode, keys, resume=resume)
    result = adapt_command.adapt(
        str(teacher),
        Path(output),
        {"data": str(data), **keys},
        ADAPT[mode],
        mode=mode,
        resume=resume,
        overwrite=overwrite,
        console=Console(stderr=True, quiet=quiet),
    )
    return Adapted(Path(output) / TEACHER, result.get("top1"), result.get("map"), result)


def cache(*, teacher: str | Path, data: Data, cache: str | Path, recipe: str | Path | None = None, **keys: Any) -> Path:
    """Store the teacher's outputs for all training images, as `scalekd cache` does.

    Args:
        teacher: A name, file or folder, as for the command.
        data: A folder or another source, as for the command.
        cache: Folder of caches; pass the same to `distill`.
        recipe: Name of a shipped recipe, or a YAML file.
        keys: The keys of the runs that will read the cache.

    Returns:
        The folder of this cache.

    Raises:
        UserError: For any wrong input.
    """
    named = {"teacher": str(teacher), "data": str(data), "cache": str(cache)}
    return Path(fill_cache(load(recipe, named | keys, count=count_images))["folder"])


def evaluate(
    model: Model, *, data: Data | ImageDataset | None = None, weights: str | Path | None = None, **keys: Any
) -> Measured:
    """Measure the accuracy of a model's own head, as `scalekd evaluate` does.

    Args:
        model: A run's folder, a name or file as for the command, or a module.
        data: A folder or another source, as for the command, of which `val_split` is measured; or a data set. Default:
            the run's.
        weights: A safetensors file for a name.
        keys: Recipe keys, such as `val_split="test"`.

    Raises:
        UserError: For any wrong input.
    """
    if isinstance(model, nn.Module) and weights is not None:
        raise UserError("weights: are for a name; a module has its own")
    split = None if data is None or isinstance(data, str | Path) else read_object(data)
    named = {"data": str(data)} if isinstance(data, str | Path) else {}
    return evaluate_command.measure(
        model if isinstance(model, nn.Module) else str(model),
        weights=None if weights is None else Path(weights),
        flags=named | keys,
        split=split,
    )


def predict(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int | None = None,
    threshold: float | None = None,
    **keys: Any,
) -> Predicted:
    """Find the most probable classes of images, as `scalekd predict` does.

    Args:
        model: A run's folder, or a name or file as for the command, also an .onnx file.
        images: Images, and folders of images.
        top: Number of classes for each image, at most. Default: 5, or all with a threshold.
        threshold: The least probability of a class.
        keys: Recipe keys, such as `batch=64`.

    Raises:
        UserError: For any wrong input.
    """
    places = [images] if isinstance(images, str | Path) else images
    missing: dict[str, str] = {}
    found = dict(
        predict_command.predict(
            str(model),
            predict_command.list_images([Path(place) for place in places]),
            keys,
            missing,
            top=top,
            threshold=threshold,
        )
    )
    return Predicted(found, missing)


def export(
    model: str | Path,
    *,
    format: Literal["timm", "onnx", "torch-export"],  # noqa: A002 (the name of the command's flag)
    output: str | Path | None = None,
    int8: bool = False,
    input: Literal["float", "uint8"] = "float",  # noqa: A002 (likewise)
    overwrite: bool = False,
    **keys: Any,
) -> Exported:
    """Write a model in another format and compare its answers with the model's, as `scalekd export` does.

    Args:
        model: A run's folder, or a name or file as for the command.
        format: The format.
        output: The file or folder to write. Default: in the run's folder.
        int8: Whether to write an int8 ONNX file, too.
        input: What an ONNX file takes: prepared images, or decoded ones of any size (`uint8`).
        overwrite: Whether to replace an export that is there.
        keys: Recipe keys, such as `data`.

    Raises:
        UserError: For any wrong input.
    """
    check_format(format, int8=int8, pixels=input == "uint8")
    result, _ = export_command.export(
        str(model),
        format_=format,
        output=None if output is None else Path(output),
        int8=int8,
        pixels=input == "uint8",
        overwrite=overwrite,
        flags=keys,
    )
    return Exported(Path(result["output"]), result)
