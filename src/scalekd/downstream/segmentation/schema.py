"""The typed recipe of `transfer segmentation`: every key, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scalekd.models.sources import FIXED_ARGS
from scalekd.recipes import Keys, OptimizerKeys

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class ModelKeys(Keys):
    """Model."""

    backbone: str | None = None
    """timm name, a weights file written by scalekd, or the folder of a run."""
    backbone_weights: Path | None = None
    """safetensors file for the timm name."""
    backbone_pretrained: bool = True
    """Whether a timm name without backbone_weights starts from the hub's weights; otherwise they are random."""
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{drop_path_rate: 0.3}'."""
    decoder_channels: Positive = 512
    """Channels of UPerNet's decoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of channels that are dropped before the class scores."""
    auxiliary_weight: NonNegative = 0.4
    """Weight of the loss of an auxiliary head on the map of stride 16; 0 leaves the head out."""


class DataKeys(Keys):
    """Data and augmentation."""

    data: Path | None = None
    """Folder of the data set; ADE20K's layout by default."""
    image_folder: str = "images/{split}"
    """Where a split's images are in it."""
    label_folder: str = "annotations/{split}"
    """Where a split's label images are in it: one channel of class numbers, named as the images are."""
    train_split: str = Field(default="training", min_length=1)
    """Name of the training split."""
    val_split: str = Field(default="validation", min_length=1)
    """Name of the validation split."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their numbers."""
    num_classes: int | None = Field(default=None, ge=2, le=254)
    """Number of classes, where they are not named."""
    zero_is_unlabelled: bool = True
    """Whether 0 stands for pixels without a label and classes are numbered from 1, as in ADE20K. 255 always does."""
    short_side: Positive = 512
    """Short side in pixels that images are resized to for testing, and before the random scale in training."""
    long_side: Positive = 2048
    """Most pixels of the long side at that size."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale."""
    crop: Positive = 512
    """Side in pixels of the random crop."""
    max_class_share: Fraction = 0.75
    """A crop with more than this of one class is drawn again, up to ten times."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    photometric: Fraction = 0.5
    """Probability of each photometric distortion: brightness, contrast, saturation, hue."""
    workers: int = Field(default=2, ge=0)
    """Processes that load images. The result does not depend on it."""
    max_corrupt: int = Field(default=10, ge=0)
    """Unreadable images to skip before the run stops."""


class OptimisationKeys(OptimizerKeys):
    """Optimisation."""

    steps: Positive = 160_000
    """Optimiser steps."""
    batch: Positive = 16
    """Global batch: images an optimiser step."""
    micro_batch: int | None = Field(default=None, ge=2)
    """Images at once; gradients of the rest of the batch are accumulated. Default: the batch."""
    power: float = Field(default=1.0, gt=0)
    """Power of the polynomial that the learning rate falls with, from lr to min_lr."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end."""
    warmup_steps: int = Field(default=1500, ge=0)
    """Steps of linear warm-up. Left open, they are at most a tenth of the steps."""
    warmup_lr: NonNegative = 0.0
    """Learning rate at the start of warm-up."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the model's exponential moving average, which is then tested and saved."""


class TestKeys(Keys):
    """Testing."""

    window: Positive | None = None
    """Side in pixels of a sliding window, whose scores are averaged where windows overlap. Default: the whole image."""
    window_stride: Positive | None = None
    """Pixels between windows. Default: two thirds of the window."""
    flip_test: bool = False
    """Whether the mirrored image is averaged in."""
    pictures: int = Field(default=8, ge=0)
    """Validation images to draw: image, truth, prediction."""


class RunKeys(Keys):
    """Run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type; auto takes bf16 where the hardware multiplies matrices in it."""
    channels_last: bool = True
    """Whether convolutions use the channels-last layout."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto takes the first GPU that is there."""
    validate_every: Positive = 16_000
    """Steps between validations (and checkpoints). Left open, it is at most the steps."""
    log_every: Positive = 50
    """Steps between log lines; the last step has one too."""


class Segmentation(RunKeys, TestKeys, OptimisationKeys, DataKeys, ModelKeys):
    """All keys of a segmentation run."""

    @model_validator(mode="before")
    @classmethod
    def _short_runs(cls, keys: dict[str, Any]) -> dict[str, Any]:
        steps = str(keys.get("steps", ""))
        if not steps.isdigit():
            return keys
        most = {"warmup_steps": int(steps) // 10, "validate_every": max(int(steps), 1)}
        return {key: min(cls.model_fields[key].default, value) for key, value in most.items()} | keys

    @model_validator(mode="after")
    def _consistent(self) -> Segmentation:
        fixed = sorted(self.backbone_args.keys() & FIXED_ARGS)
        if fixed:
            raise ValueError(f"backbone_args: {fixed[0]} cannot be given here; it is a key of its own or has none")
        at_once = self.micro_batch or self.batch
        if self.batch % at_once:
            raise ValueError(f"micro_batch: {at_once} does not divide the batch of {self.batch}")
        if at_once < 2:
            raise ValueError("batch: UPerNet's batch norms need at least 2 images at once")
        if self.steps % self.validate_every:
            raise ValueError(f"validate_every: {self.validate_every} does not divide the {self.steps} steps")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} must be less than the {self.steps} steps")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range: {list(self.scale_range)} is not a range above 0")
        if self.num_classes and self.classes and self.num_classes != len(self.classes):
            raise ValueError(f"num_classes: {self.num_classes}, but {len(self.classes)} classes are named")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: give each name once")
        for key in ("image_folder", "label_folder"):
            if "{split}" not in getattr(self, key):
                raise ValueError(f"{key}: {getattr(self, key)!r} must say where the split's name goes: {{split}}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes; their numbers where they have none, and nothing where their number is not known."""
        return self.classes or tuple(str(number) for number in range(self.num_classes or 0))


GROUPS: tuple[type[Keys], ...] = (ModelKeys, DataKeys, OptimisationKeys, TestKeys, RunKeys)
