"""Image transforms: from an opened image, not necessarily decoded, to RGB, in most `[3, size, size]` in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from scalekd.data.decoding import OpenedImage, read, read_crop, resize, to_tensor, trim
from scalekd.data.orientation import Box
from scalekd.errors import UserError

Transform = Callable[[OpenedImage], Tensor]


def training_transform(
    resolution: int,
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (0.75, 4 / 3),
    flip: float = 0.5,
    rand_augment: str | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Build the training transform: random resized crop, flip, RandAugment and random erasing, as in timm.

    The crop is drawn from the image's size before decoding, so that only the part needed is decoded.

    Raises:
        UserError: If `rand_augment` is not in timm's notation.
    """
    steps: list[Callable[..., Any]] = [
        partial(random_crop, scale=crop_scale, ratio=crop_ratio, side=resolution),
        transforms.RandomHorizontalFlip(flip),
    ]
    if rand_augment:
        grey = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)
        hparams = {"translate_const": int(resolution * 0.45), "img_mean": grey}
        try:
            steps += [F.to_pil_image, rand_augment_transform(rand_augment, hparams), to_tensor]
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"rand_augment: {rand_augment!r} is not in timm's notation (rand-m7-mstd0.5-inc1): {error}"
            ) from None
    steps.append(to_float)
    if erasing:
        # Erased areas are filled with normal noise in normalised space, as in the released recipes.
        normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        undo = transforms.Normalize(
            [-m / s for m, s in zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)],
            [1 / s for s in IMAGENET_DEFAULT_STD],
        )
        steps += [normalise, RandomErasing(erasing, mode="pixel", device="cpu"), undo]
    composed: Transform = transforms.Compose(steps)
    return composed


def evaluation_transform(resolution: int, crop_fraction: float = 0.875) -> Transform:
    """Build the evaluation transform: resize the short side to `resolution / crop_fraction` (bicubic), centre crop.

    Extremely elongated images are cut to their middle part first, see `trim`.
    """
    short = round(resolution / crop_fraction)
    composed: Transform = transforms.Compose(
        [read, trim, partial(resize, size=[short]), transforms.CenterCrop(resolution), to_float]
    )
    return composed


def whole_transform() -> Transform:
    """Build the transform that decodes an image and does not resize it: `[3, h, w]`, uint8; see `trim`."""
    composed: Transform = transforms.Compose([read, trim])
    return composed


def random_crop(
    image: OpenedImage,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    side: int,
    read: Callable[[OpenedImage, Box, int], Tensor] = read_crop,
) -> Tensor:
    """Take a random crop with timm's random draws: `[3, side, side]`, uint8."""
    size = torch.empty(1).expand(1, image.height, image.width)  # allocates no pixels: timm only reads the shape
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(size, scale, ratio)
    return read(image, (left, top, left + width, top + height), side)


def to_float(image: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]."""
    return image.contiguous().float().div_(255)
