"""The typed recipe of `transfer detection`: every key, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from scalekd.models.sources import FIXED_ARGS
from scalekd.recipes import Keys, OptimizerKeys
from scalekd.recipes.schema import Fraction, NonNegative, Positive, Undecayed


class ModelKeys(Keys):
    """Model."""

    backbone: str | None = None
    """timm name, a weights file written by scalekd, or the folder of a run."""
    backbone_weights: Path | None = None
    """safetensors file for the timm name."""
    backbone_pretrained: bool = True
    """Whether a timm name without backbone_weights starts from the hub's weights; otherwise they are random."""
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, as YAML: '{drop_path_rate: 0.2}'."""
    frozen_norm: bool = True
    """Whether batch norms of the backbone keep the statistics that they have."""
    frozen_stem: bool = False
    """Whether the backbone's layers up to its map of stride 4 keep their weights."""

    width: Positive = 256
    """Channels of the feature pyramid and of the mask head."""
    hidden: Positive = 1024
    """Width of the box head."""


class DataKeys(Keys):
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


class OptimisationKeys(OptimizerKeys):
    """Optimisation."""

    epochs: Positive = 12
    """Passes over the training images."""
    batch: Positive = 16
    """Global batch: images an optimiser step."""
    micro_batch: Positive | None = None
    """Images at once; gradients of the rest of the batch are accumulated. Default: the whole batch."""
    proposals: Positive = 512
    """Boxes of each image that the box and mask heads learn from."""
    optimizer: Literal["adamw", "sgd", "lamb"] = "sgd"
    """Optimiser, timm's. sgd is without Nesterov's look-ahead; lamb first scales gradients to norm 1 itself."""
    lr: float = Field(default=0.02, gt=0)
    """Peak learning rate at the global batch."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    no_decay: tuple[Undecayed, ...] = ()
    """Kinds of parameters that do not decay."""
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


class RunKeys(Keys):
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


class Detection(RunKeys, OptimisationKeys, DataKeys, ModelKeys):
    """All keys of a detection run."""

    @model_validator(mode="after")
    def _consistent(self) -> Detection:
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


GROUPS: tuple[type[Keys], ...] = (ModelKeys, DataKeys, OptimisationKeys, RunKeys)
