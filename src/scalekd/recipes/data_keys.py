"""The recipe keys of a run's images: where they are, how lists are read, and how images are augmented."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scalekd.keys import Fraction, Keys, NonNegative, Place, Positive, Separator, SplitName


class DataKeys(Keys):
    """Data and augmentation."""

    data: Place | None = None
    """Folder with one folder per split, which contains one folder per class: DATA/train/cat/1.jpg. Or a list (.csv,
    .tsv, .txt, .jsonl), tar shards (a folder, or a pattern such as /data/{split}-{000..146}.tar, also as URLs),
    hf:NAME, torchvision:NAME; see docs/data.md."""
    unlabelled_split: SplitName = "unlabelled"
    """Name of a split of images without labels (in any subfolders); if it exists, it is used in addition to the
    training split."""
    labels: Literal["folders", "none"] = "folders"
    """folders: each folder is a class. none: learn from the teacher only; classes and accuracy come from the validation
    split, if any."""
    resolution: int = Field(default=224, gt=0, le=16384)
    """Side in pixels of the images on which the student is trained and evaluated."""
    crop_fraction: float = Field(default=0.875, ge=0.1, le=1)
    """Evaluation: resize the short side to resolution / crop_fraction, then crop the centre."""
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Range of the random crop's area, as a share of the image."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the random crop's aspect ratio."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m7-mstd0.5-inc1."""
    erasing: Fraction = 0.0
    """Probability of random erasing."""
    mixup: NonNegative = 0.0
    """Mixup alpha; 0 is off."""
    cutmix: NonNegative = 0.0
    """Cutmix alpha; 0 is off."""
    augmentation_epochs: Positive | None = None
    """Epochs after which the augmentations repeat: epoch e is augmented as epoch e mod this. Default: never."""
    workers: int = Field(default=2, ge=0, le=1024)
    """Number of processes that load images. The result does not depend on it."""
    max_corrupt: int = Field(default=10, ge=0, lt=2**31)
    """Number of unreadable images to skip before the run stops."""
    max_pixels: Positive = 178_956_970
    """Largest number of pixels of an image; larger images count as unreadable."""
    data_patience: NonNegative = 60.0
    """Seconds to wait if the folder of the images disappears (a network disk, for example), before the run stops."""


class ListKeys(Keys):
    """Columns of lists of images."""

    path_column: str | None = Field(default=None, min_length=1)
    """List: column with the images' paths. Default: path, or another usual name such as filename."""
    label_column: str | None = Field(default=None, min_length=1)
    """List: column with the labels. Default: label, or another usual name such as class."""
    split_column: str | None = Field(default=None, min_length=1)
    """List: column with the split of each image. Default: split, or another usual name such as subset."""
    multi_label: bool = False
    """List: an image may have several classes, or none (multi-label): names in the label column, or a column of 0 and 1
    per class. See docs/data.md."""
    label_separator: Separator | None = None
    """List with multi_label: separator of the names in a label: one character, or comma, semicolon, ... Default: |."""
    separator: Separator | None = None
    """List: separator of the fields in a line: one character, or comma, semicolon, tab, pipe, space. Default: detected
    from the first line."""


class SourceKeys(ListKeys):
    """Splits and lists of images."""

    train_split: SplitName = "train"
    """Name of the training split: of its folder, list or shards."""
    val_split: SplitName = "val"
    """Name of the validation split."""
    val_share: float | None = Field(default=None, gt=0, le=0.5)
    """For images without a validation split: the share of each class's training images that is held out as one. If
    there is no training split either, the folder's own subfolders are the classes. Equal files stay on one side."""


AS_USUAL = SourceKeys.model_construct()  # the defaults, without building the validator
