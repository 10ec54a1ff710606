"""Read and write folders in timm's format, which `timm.create_model("local-dir:FOLDER")` and the hub can load."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, TypeAdapter, ValidationError
from timm.models._hub import load_model_config_from_path, save_config_for_hf
from torch import Tensor
from typing_extensions import TypedDict  # pydantic's choice below Python 3.12

from scalekd.errors import UserError
from scalekd.keys import FIXED_ARGS
from scalekd.models import Classifier
from scalekd.models.folders import CONFIG, WEIGHTS
from scalekd.models.key_matching import load_weights
from scalekd.models.sources import create, is_timm, may_come_from_a_file, timm_config
from scalekd.models.weights import file_hash, read_weights

# Keys of timm's configuration that describe an architecture's modules rather than its published weights.
_STRUCTURE = ("fixed_input_size", "first_conv", "classifier")


_Share = Annotated[float, Field(ge=0.1, le=1)]
_Side = Annotated[int, Field(gt=0, le=16384)]


class _Config(TypedDict, total=False):
    """The entries of `config.json` that are read."""

    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    input_size: tuple[Literal[3], _Side, _Side]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop_pct: _Share
    label_names: list[str] | dict[str, str]


_CONFIG = TypeAdapter(_Config)


def write_timm_folder(classifier: Classifier, folder: str | Path, weights: Path | None) -> str:
    """Write `config.json` and `model.safetensors`.

    Args:
        classifier: The model.
        folder: The target folder; created if it does not exist.
        weights: The file that the model was read from, which is then copied as is, including its card; None to write
            the model's current weights.

    Returns:
        The SHA-256 of the weights.

    Raises:
        UserError: If timm does not know the model.
    """
    folder = Path(folder)
    if not is_timm(classifier.name):
        raise UserError(f"format: {classifier.name} is not a timm model; export it with --format onnx")
    folder.mkdir(parents=True, exist_ok=True)
    model, side = copy.copy(classifier.model), classifier.resolution
    own = {key: model.pretrained_cfg[key] for key in _STRUCTURE if key in model.pretrained_cfg}
    model.pretrained_cfg = own | {
        "architecture": classifier.name.split(".", maxsplit=1)[0],
        "num_classes": classifier.num_classes,
        "input_size": (3, side, side),
        "mean": _rounded(classifier.mean),
        "std": _rounded(classifier.std),
        "crop_pct": classifier.crop_fraction,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    labels = {"label_names": list(classifier.classes)} if classifier.classes else {}
    save_config_for_hf(model, str(folder / CONFIG), model_config=labels, model_args=classifier.model_args)
    if weights is None:
        return classifier.save(folder / WEIGHTS)
    shutil.copyfile(weights, folder / WEIGHTS)
    return file_hash(folder / WEIGHTS)


def read_timm_folder(folder: str | Path, resolution: int | None = None) -> Classifier:
    """Load the model of a folder that scalekd, timm or the hub wrote, from `config.json` and the safetensors file only.

    Args:
        folder: The folder.
        resolution: Image side in pixels; by default the one in `config.json`.

    Raises:
        UserError: If a file is missing or invalid, or `config.json` sets arguments that a file must not set.
    """
    folder = Path(folder)
    try:
        config, name, args = load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"model: {folder / CONFIG} is not a timm configuration: {error}") from None
    try:
        said = _CONFIG.validate_python(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"model: {folder / CONFIG} is invalid: {where}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    classes = said.get("num_classes", args.get("num_classes", 1000))
    args = {key: value for key, value in args.items() if key != "num_classes"}
    if not may_come_from_a_file(str(name)):
        raise UserError(f"model: {folder / CONFIG} names {name!r}, which timm does not know")
    foreign = sorted(args.keys() & FIXED_ARGS)
    if foreign:
        raise UserError(f"model: {folder / CONFIG} wants to set {foreign[0]}, which a file must not; do not trust it")
    state, card = read_weights(folder / WEIGHTS)
    images = {key: said[key] for key in ("input_size", "mean", "std", "crop_pct") if key in said}
    if resolution and timm_config(name).fixed_input_size:
        args |= {"img_size": resolution}
    overlay = {"pretrained_cfg_overlay": images, "num_classes": classes}
    module = create(name, pretrained=False, model_args=args | overlay)
    notes = load_weights(module, state, folder / WEIGHTS)
    try:
        classifier = Classifier(module, resolution=resolution)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model: {folder / CONFIG} has invalid image settings: {error}") from None
    classifier.name, classifier.model_args, classifier.notes = name, args, notes
    names = said.get("label_names") or (card.classes if card else ())
    classifier.classes = tuple(names.values() if isinstance(names, dict) else names)
    classifier.multi_label = card is not None and card.multi_label
    if classifier.classes and len(classifier.classes) != classifier.num_classes:
        raise UserError(
            f"model: {folder} names {len(classifier.classes)} classes, but the model has {classifier.num_classes}"
        )
    return classifier


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Round float32 values to 6 digits, which recovers the decimal numbers that they were made from."""
    return tuple(round(value, 6) for value in values.flatten().tolist())


def is_timm_folder(path: str | Path) -> bool:
    """Whether a folder has timm's configuration."""
    path = Path(path)
    return (path / CONFIG).is_file()
