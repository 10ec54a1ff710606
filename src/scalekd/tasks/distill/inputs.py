"""From a recipe to the images that a run reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scalekd.data import (
    Key,
    ReplayDataset,
    Split,
    evaluation_transform,
    join,
    open_data,
    read_label_free,
    read_splits,
    read_unlabelled,
    refuse_shared,
    training_transform,
    with_filled_classes,
)
from scalekd.errors import UserError
from scalekd.method import TeacherOutputs
from scalekd.recipes import Recipe


def read_data(recipe: Recipe) -> tuple[Split, Split]:
    """Training and validation images as the recipe's `labels` wants them.

    Raises:
        UserError: If no data is named, it is not as the recipe says, or validation images are trained on.
    """
    train, val = _read_data(recipe)
    refuse_shared(train, val, (recipe.train_split, recipe.val_split))
    return train, val


def _read_data(recipe: Recipe) -> tuple[Split, Split]:
    data = recipe.data
    if data is None:
        raise UserError(
            "data: none is given; give --data (a folder with train/<class>/ and val/<class>/, or see docs/data.md)"
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
    """Make sure that what a command writes does not become a class of the images that it reads.

    Args:
        recipe: The settings.
        output: The folder that is written, which need not be there.
        key: The key that names it.

    Raises:
        UserError: If it is in the folder of a split.
    """
    output = Path(output)
    for split in (recipe.train_split, recipe.val_split, recipe.unlabelled_split):
        root = Path(recipe.data or "") / split
        if recipe.data and root.is_dir() and output.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{key}: {output} is in {root}, whose folders are read as images; name a folder elsewhere, "
                f"as runs/{output.name}"
            )


def training_images(
    recipe: Recipe, split: Split, taught: Callable[[Key], TeacherOutputs] | None = None
) -> ReplayDataset:
    """A split's images as the recipe augments them.

    Args:
        recipe: The run's settings.
        split: The images.
        taught: The teacher's outputs for a key, where they are kept.

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
        taught=taught,
        max_pixels=recipe.max_pixels,
        patience=recipe.data_patience,
    )


def evaluation_images(
    recipe: Recipe, split: Split, *, resolution: int | None = None, crop_fraction: float | None = None
) -> ReplayDataset:
    """A split's images as they are evaluated: at the recipe's resolution and crop, if these are not given."""
    transform = evaluation_transform(resolution or recipe.resolution, crop_fraction or recipe.crop_fraction)
    return ReplayDataset(split, transform, max_pixels=recipe.max_pixels, patience=recipe.data_patience)
