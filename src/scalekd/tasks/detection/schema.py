"""The typed recipe of `transfer detection`: every key, its default and what it means."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scalekd.keys import File, Fraction, Keys, NonNegative, Positive, SplitName, Undecayed
from scalekd.tasks.transfer.keys import BackboneKeys, LoadingKeys, RunKeys, StepKeys, Transfer


class ModelKeys(BackboneKeys):
    """Model."""

    frozen_norm: bool = True
    """Whether batch norms of the backbone keep their statistics."""
    frozen_stem: bool = False
    """Whether the backbone's layers up to its map of stride 4 keep their weights."""
    width: Positive = 256
    """Channels of the feature pyramid and of the mask head."""
    hidden: Positive = 1024
    """Width of the box head."""
    masks: bool = True
    """Whether to train masks if training objects have them (Mask R-CNN); otherwise only boxes (Faster R-CNN)."""


class DataKeys(LoadingKeys):
    """Data and augmentation."""

    data: File | None = None
    """Folder with annotations in COCO's format and images: annotations/instances_train2017.json, train2017/*.jpg."""
    train_split: SplitName = "train2017"
    """The training split: its name in annotations/instances_SPLIT.json and the like, or its JSON file."""
    val_split: SplitName = "val2017"
    """The validation split, likewise."""
    crowds: Literal["ignore", "objects"] = "ignore"
    """How to treat annotations with iscrowd: ignored as in COCO, or ordinary objects; some tools mark every mask so."""
    empty_images: bool = False
    """Whether to train on images without objects too."""
    sizes: tuple[Positive, ...] = (800,)
    """Short sides in pixels to resize images to. Of several, one is drawn per image; evaluation uses the last."""
    max_size: Positive = 1333
    """Longest side in pixels; images that would exceed it are scaled down."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""


class OptimisationKeys(StepKeys):
    """Optimisation."""

    epochs: Positive = 12
    """Passes over the training images."""
    proposals: Positive = 512
    """Boxes per image that the box and mask heads are trained on."""
    optimizer: Literal["adamw", "sgd", "lamb"] = "sgd"
    """Optimiser, timm's. sgd is without Nesterov's look-ahead; lamb first scales gradients to norm 1 itself."""
    lr: float = Field(default=0.02, gt=0)
    """Peak learning rate at the global batch."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    no_decay: tuple[Undecayed, ...] = ()
    """Kinds of parameters that do not decay."""
    milestones: tuple[Positive, ...] = (8, 11)
    """Epochs after which the learning rate is divided by ten."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps of linear warm-up."""
    warmup_lr: NonNegative = 2e-5
    """Learning rate at the start of warm-up."""


class DetectionRunKeys(RunKeys):
    """Run."""

    validate_every: Positive = 1
    """Epochs between validations. There is one after the last epoch, too."""


class Detection(DetectionRunKeys, OptimisationKeys, DataKeys, ModelKeys, Transfer):
    """All keys of a detection run."""

    @model_validator(mode="after")
    def _consistent(self) -> Detection:
        if not self.sizes:
            raise ValueError("sizes: give one short side at least")
        if self.max_size < max(self.sizes):
            raise ValueError(f"max_size: {self.max_size} is less than the short side of {max(self.sizes)}")
        return self


GROUPS: tuple[type[Keys], ...] = (ModelKeys, DataKeys, OptimisationKeys, DetectionRunKeys)
