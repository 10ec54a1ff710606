"""Reads the images of a recipe and applies its augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scalekd.data import (
    CachedOutputs,
    Key,
    ReplayDataset,
    Split,
    evaluation_transform,
    join,
    open_data,
    read_label_free,
    read_splits,
    read_unlabelled,
    refuse_output_among_images,
    refuse_shared,
    training_transform,
    whole_transform,
    with_filled_classes,
)
from scalekd.errors import UserError
from scalekd.methods.share import FeatureShare
from scalekd.recipes import Recipe

Splits = tuple[Split, Split]  # training and validation images


def read_data(recipe: Recipe) -> Splits:
    """Read the training and validation images, with or without labels as the recipe's `labels` says.

    Raises:
        UserError: If no data is given, it does not match the recipe, or the splits share images.
    """
    train, val = _read_data(recipe)
    refuse_shared(train, val, (recipe.train_split, recipe.val_split))
    return train, val


def count_images(recipe: Recipe) -> int:
    """Return the number of training images; see `read_data` for errors."""
    return len(_read_data(recipe)[0])


def _read_data(recipe: Recipe) -> Splits:
    data = recipe.data
    if data is None:
        raise UserError(
            "data: none is given; pass --data (a folder with train/<class>/ and val/<class>/, or see docs/data.md)"
        )
    if recipe.labels == "none":
        train, val = read_label_free(data, recipe.train_split, recipe.val_split, recipe.unlabelled_split, recipe)
        return train, with_filled_classes(val) if len(val) else val
    train, val = read_splits(data, recipe.train_split, recipe.val_split, recipe)
    if recipe.method != "none" and open_data(data, recipe).has(recipe.unlabelled_split):
        train = join(train, read_unlabelled(data, recipe.unlabelled_split, recipe))
        if recipe.mixup or recipe.cutmix:
            raise UserError("mixup: images with and without labels cannot be mixed; set mixup and cutmix to 0")
    return train, val


def check_output(recipe: Recipe, output: str | Path, key: str = "output") -> None:
    """Check that the folder a command writes is not inside a split, where it would be read as a class.

    Args:
        recipe: The settings.
        output: The folder to be written; it need not exist.
        key: The key that sets it, for the error.

    Raises:
        UserError: If it is inside the folder of a split.
    """
    splits = (recipe.train_split, recipe.val_split, recipe.unlabelled_split)
    if recipe.data:
        data = Path(recipe.data)
        takes_all = recipe.val_share is not None or recipe.labels == "none"  # of a folder without splits
        unsplit = takes_all and not any((data / split).exists() for split in splits)
        refuse_output_among_images(Path(output), [data] if unsplit else [data / split for split in splits], key)


def training_images(
    recipe: Recipe, split: Split, cached_outputs: Callable[[Key], CachedOutputs] | None = None
) -> ReplayDataset:
    """Return the dataset of a split with the recipe's augmentation.

    Args:
        recipe: The run's settings.
        split: The images.
        cached_outputs: Returns the cached teacher outputs for a key; None without a cache.

    Raises:
        UserError: If `rand_augment` is not in timm's notation.
    """
    transform = training_transform(
        recipe.resolution,
        crop_scale=recipe.crop_scale,
        crop_ratio=recipe.crop_ratio,
        flip=recipe.flip,
        rand_augment=recipe.rand_augment,
        erasing=recipe.erasing,
    )
    return ReplayDataset(
        split,
        transform,
        seed=recipe.seed,
        substitute=True,
        cached_outputs=cached_outputs,
        share=FeatureShare(recipe.feature_share),
        max_pixels=recipe.max_pixels,
        patience=recipe.data_patience,
    )


def evaluation_images(
    recipe: Recipe, split: Split, *, resolution: int | None = None, crop_fraction: float | None = None
) -> ReplayDataset:
    """Return the dataset of a split for evaluation.

    Args:
        recipe: The run's settings.
        split: The images.
        resolution: Image side in pixels. Default: the recipe's.
        crop_fraction: Fraction of the resized image's side that the central crop keeps. Default: the recipe's.
    """
    transform = evaluation_transform(resolution or recipe.resolution, crop_fraction or recipe.crop_fraction)
    return ReplayDataset(split, transform, max_pixels=recipe.max_pixels, patience=recipe.data_patience)


def whole_images(recipe: Recipe, split: Split) -> ReplayDataset:
    """Return the dataset of a split for a model that resizes images itself: uint8, each of its own size."""
    return ReplayDataset(split, whole_transform(), max_pixels=recipe.max_pixels, patience=recipe.data_patience)
