"""The keys of a detection run, and the recipes that are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from scalekd.errors import UserError, did_you_mean
from scalekd.models.sources import FIXED_ARGS
from scalekd.recipes import Keys
from scalekd.recipes.schema import Fraction, NonNegative, Positive, Undecayed


class BackboneKeys(Keys):
    """Backbone."""

    backbone: str | None = None
    """A run's folder, a weights file written by scalekd, or a timm name."""
    backbone_weights: Path | None = None
    """safetensors file for a timm name."""
    backbone_pretrained: bool = True
    """Whether a timm name without weights takes the hub's; otherwise they are random."""
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{drop_path_rate: 0.2}'."""
    frozen_norm: bool = True
    """Whether batch norms of the backbone keep the statistics that they have."""
    frozen_stem: bool = False
    """Whether the backbone's layers up to its map of stride 4 keep their weights."""


class CocoKeys(Keys):
    """Data and augmentation."""

    data: Path | None = None
    """Folder in COCO's layout: DATA/annotations/instances_train2017.json, DATA/train2017/*.jpg."""
    train_split: str = Field(default="train2017", min_length=1)
    """The training split: its folder, and its annotations in annotations/instances_SPLIT.json."""
    val_split: str = Field(default="val2017", min_length=1)
    """The validation split, likewise."""
    empty_images: bool = False
    """Whether images without any object to learn are trained on, too."""
    sizes: tuple[Positive, ...] = (800,)
    """Short sides in pixels that images are resized to; several: one is drawn each time. Evaluation takes the last."""
    max_size: Positive = 1333
    """Longest side in pixels: images that would be longer are made smaller."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    workers: int = Field(default=2, ge=0)
    """Processes that load images. The result does not depend on it."""
    max_corrupt: int = Field(default=10, ge=0)
    """Unreadable images to skip before the run stops."""


class ScheduleKeys(Keys):
    """Optimisation."""

    epochs: Positive = 12
    """Passes over the training images."""
    batch: Positive = 16
    """Global batch: images an optimiser step."""
    micro_batch: Positive | None = None
    """Images at once; gradients of the rest of the batch are accumulated. Default: the whole batch."""
    proposals: Positive = 512
    """Boxes of each image that the box and mask heads learn from."""
    optimizer: Literal["adamw", "sgd"] = "sgd"
    """Optimiser, timm's. sgd is without Nesterov's look-ahead."""
    lr: float = Field(default=0.02, gt=0)
    """Peak learning rate at the global batch."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    no_decay: tuple[Undecayed, ...] = ()
    """Kinds of parameters that do not decay."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    milestones: tuple[Positive, ...] = (8, 11)
    """Epochs after which the learning rate is a tenth of what it was."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps of linear warm-up."""
    warmup_lr: NonNegative = 2e-5
    """Learning rate at the start of warm-up."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the detector's exponential moving average, which is then evaluated and saved."""


class DetectionRunKeys(Keys):
    """Run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type; auto takes bf16 where the hardware multiplies matrices in it."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto takes the first GPU that is there."""
    validate_every: Positive = 1
    """Epochs between validations (and checkpoints)."""
    log_every: Positive = 50
    """Steps between log lines; the last step has one too."""
    pictures: int = Field(default=8, ge=0)
    """Validation images drawn at the end, their objects beside what was found."""


class DetectionRecipe(DetectionRunKeys, ScheduleKeys, CocoKeys, BackboneKeys):
    """All keys of a detection run."""

    @model_validator(mode="after")
    def _consistent(self) -> DetectionRecipe:
        fixed = sorted(self.backbone_args.keys() & FIXED_ARGS)
        if fixed:
            raise ValueError(f"backbone_args: {fixed[0]} cannot be given here; it follows the data")
        if not self.sizes:
            raise ValueError("sizes: give one short side at least")
        if self.max_size < max(self.sizes):
            raise ValueError(f"max_size: {self.max_size} is less than the short side of {max(self.sizes)}")
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide the batch of {self.batch}")
        if self.epochs % self.validate_every:
            raise ValueError(f"validate_every: {self.validate_every} does not divide the {self.epochs} epochs")
        return self

    @property
    def accumulate(self) -> int:
        """Micro-batches an optimiser step."""
        return self.batch // (self.micro_batch or self.batch)


DETECTION_GROUPS: tuple[type[Keys], ...] = (BackboneKeys, CocoKeys, ScheduleKeys, DetectionRunKeys)


def detection_recipes() -> list[str]:
    """Names of the shipped detection recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in resources.files(__package__).joinpath("recipes").iterdir())


def load_detection(recipe: str | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> DetectionRecipe:
    """Read a detection recipe and lay the overrides on top.

    Args:
        recipe: A shipped recipe's name, a YAML file, or keys; None for the defaults, which are the 1x schedule's.
        overrides: Keys that win over the recipe's.

    Raises:
        UserError: If there is no such recipe, the file is no YAML mapping, or a key or value is wrong.
    """
    source = f"recipe {recipe}" if isinstance(recipe, str) else "recipe"
    keys = {**(_read(recipe) if isinstance(recipe, str) else recipe or {}), **overrides}
    for key in keys:
        if key not in DetectionRecipe.model_fields:
            raise UserError(f"{source}: unknown key {key!r}{did_you_mean(str(key), DetectionRecipe.model_fields)}")
    try:
        return DetectionRecipe.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(f"{source}: {message}") from None
        key = str(first["loc"][0])
        raise UserError(f"{source}: {key}: {message[0].lower()}{message[1:]} (got {keys.get(key)!r})") from None


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"recipe: no such file: {recipe}")
        text = path.read_text(encoding="utf-8")
    elif recipe in detection_recipes():
        text = resources.files(__package__).joinpath("recipes", f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        names = detection_recipes()
        raise UserError(
            f"recipe: no detection recipe {recipe!r}{did_you_mean(recipe, names)} (there are {', '.join(names)}); "
            "anything else must be a .yaml file"
        )
    try:
        keys = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"recipe {recipe}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(keys, dict):
        raise UserError(f"recipe {recipe}: must be a mapping of keys, not a {type(keys).__name__}")
    return keys
