"""The typed recipe of `transfer segmentation`: every key, its default and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scalekd.keys import File, Fraction, Keys, NonNegative, Positive, SplitName
from scalekd.tasks.transfer.keys import BackboneKeys, LoadingKeys, RunKeys, StepKeys, Transfer

IGNORED = 255  # means "no label", both as a value in label images and as a class index
_MOST_CLASSES = 254
_ENTRY = re.compile(r"(?:(\d+)|#([0-9a-fA-F]{6}))\s*=\s*(\d+)")


def _entries(value: object) -> object:
    """Convert a mapping `{255: 1}` to the entries of the command line: `255=1`."""
    return [f"{key}={number}" for key, number in value.items()] if isinstance(value, dict) else value


def _entry(text: str) -> str:
    """Validate an entry such as `255=1` or `#ff0000=1`."""
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not VALUE=NUMBER, such as 255=1 or '#ff0000=1'")
    if match[1] and int(match[1]) > 65_535:
        raise ValueError(f"{text!r}: a value is at most 65535")
    return text.strip()


def colour_in_words(value: int) -> str:
    """Format the colour `0xff0000` as `#ff0000`."""
    return f"#{value:06x}"


ValueMap = Annotated[
    tuple[Annotated[str, Field(title="VALUE=NUMBER"), AfterValidator(_entry)], ...], BeforeValidator(_entries)
]


class ModelKeys(BackboneKeys):
    """Model."""

    decoder_channels: Positive = 512
    """Channels of UPerNet's decoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of channels that are dropped before the class scores."""
    auxiliary_weight: NonNegative = 0.4
    """Weight of the loss of an auxiliary head on the map of stride 16; 0 leaves the head out."""


class DataKeys(LoadingKeys):
    """Data and augmentation."""

    data: File | None = None
    """Folder of the dataset; ADE20K's layout by default."""
    image_folder: str = "images/{split}"
    """Folder of a split's images, relative to data."""
    label_folder: str = "annotations/{split}"
    """Folder of a split's label images, relative to data: one channel of class numbers, named like the images."""
    label_suffix: str = ""
    """Suffix that a label image's name adds to the image's: _mask if a.jpg has a_mask.png."""
    split_list: str | None = Field(default=None, min_length=1)
    """Text file with a split's image names, one per line, no extension, such as ImageSets/Segmentation/{split}.txt."""
    train_split: SplitName = "training"
    """Name of the training split."""
    val_split: SplitName = "validation"
    """Name of the validation split."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their numbers."""
    num_classes: int | None = Field(default=None, ge=2, le=_MOST_CLASSES)
    """Number of classes, if they are not named."""
    zero_is_unlabelled: bool = True
    """Whether 0 means unlabelled and classes are numbered from 1, as in ADE20K. 255 always means unlabelled."""
    map_values: ValueMap = ()
    """Class numbers of values or colours, before zero_is_unlabelled applies: 0=0,255=1 or '#ff0000=1,#0000ff=2'."""
    short_side: Positive = 512
    """Short side in pixels that images are resized to for testing, and before the random scale in training."""
    long_side: Positive = 2048
    """Longest side in pixels after that resize."""
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


class OptimisationKeys(StepKeys):
    """Optimisation."""

    steps: Positive = 160_000
    """Optimiser steps."""
    power: float = Field(default=1.0, gt=0)
    """Power of the polynomial that the learning rate falls with, from lr to min_lr."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end."""
    warmup_steps: int = Field(default=1500, ge=0)
    """Steps of linear warm-up. If not set, at most a tenth of the steps."""
    warmup_lr: NonNegative = 0.0
    """Learning rate at the start of warm-up."""


class TestingKeys(Keys):
    """Testing."""

    window: Positive | None = None
    """Side in pixels of a sliding window, whose scores are averaged where windows overlap. Default: the whole image."""
    window_stride: Positive | None = None
    """Pixels between windows. Default: two thirds of the window."""
    flip_test: bool = False
    """Whether to average the predictions for the image and its mirror image."""


class SegmentationRunKeys(RunKeys):
    """Run."""

    channels_last: bool = True
    """Whether convolutions use the channels-last layout."""
    validate_every: Positive = 16_000
    """Steps between validations. There is one after the last step, too."""


class Segmentation(SegmentationRunKeys, TestingKeys, OptimisationKeys, DataKeys, ModelKeys, Transfer):
    """All keys of a segmentation run."""

    @model_validator(mode="before")
    @classmethod
    def _short_runs(cls, keys: dict[str, Any]) -> dict[str, Any]:
        steps = str(keys.get("steps", ""))
        if not steps.isdecimal():
            return keys
        return {"warmup_steps": min(cls.model_fields["warmup_steps"].default, int(steps) // 10)} | keys

    @model_validator(mode="after")
    def _consistent(self) -> Segmentation:
        if (self.micro_batch or self.batch) < 2:
            raise ValueError("batch: UPerNet's batch norms need at least 2 images at once")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} must be less than the {self.steps} steps")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range: {list(self.scale_range)} is not a range above 0")
        if self.num_classes and self.classes and self.num_classes != len(self.classes):
            raise ValueError(f"num_classes: {self.num_classes}, but {len(self.classes)} classes are named")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name occurs twice")
        if self.classes and not 2 <= len(self.classes) <= _MOST_CLASSES:
            raise ValueError(f"classes: {len(self.classes)} are named; there must be 2 to {_MOST_CLASSES}")
        if self.window_stride and self.window_stride > (self.window or 0):
            raise ValueError(f"window_stride: {self.window_stride} needs a window of at least as many pixels")
        for key in ("image_folder", "label_folder") if self.split_list is None else ("split_list",):
            if "{split}" not in getattr(self, key):
                raise ValueError(f"{key}: {getattr(self, key)!r} must contain {{split}} in place of the split's name")
        self._check_mapping()
        return self

    def _check_mapping(self) -> None:
        if len(self.mapping) < len(self.map_values):
            raise ValueError("map_values: give each value once")
        if 0 < sum(entry.startswith("#") for entry in self.map_values) < len(self.map_values):
            raise ValueError("map_values: give values or colours, not both")
        last = len(self.class_names) - 1 + self.zero_is_unlabelled
        beyond = [entry for entry, number in zip(self.map_values, self.mapping.values(), strict=True) if number > last]
        beyond = [entry for entry in beyond if self.class_names and not re.search(rf"=\s*{IGNORED}$", entry)]
        if beyond:
            first = int(self.zero_is_unlabelled)
            raise ValueError(f"map_values: {beyond[0]}, but classes are numbered {first} to {last} (255: unlabelled)")

    @property
    def mapping(self) -> dict[int, int]:
        """The class number of each value, or of each colour `0xRRGGBB`, in `map_values`."""
        matches = [_ENTRY.fullmatch(entry) for entry in self.map_values]
        return {int(m[1]) if m[1] else int(m[2], 16): int(m[3]) for m in matches if m is not None}

    @property
    def maps_colours(self) -> bool:
        """Whether `map_values` maps colours instead of values."""
        return any(entry.startswith("#") for entry in self.map_values)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes; their indices as text if only `num_classes` is set, empty if neither is."""
        return self.classes or tuple(str(number) for number in range(self.num_classes or 0))


GROUPS: tuple[type[Keys], ...] = (ModelKeys, DataKeys, OptimisationKeys, TestingKeys, SegmentationRunKeys)
