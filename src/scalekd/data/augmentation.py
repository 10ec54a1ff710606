"""Image transforms: PIL image -> float32 RGB in [0, 1], `[3, size, size]`."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from scalekd.errors import UserError

Transform = Callable[[Image.Image], Tensor]


def training_transform(
    resolution: int,
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (0.75, 4 / 3),
    flip: float = 0.5,
    rand_augment: str | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Random resized crop, flip, RandAugment and erasing, as timm does them.

    Raises:
        UserError: If `rand_augment` is not in timm's notation.
    """
    steps = [
        RandomResizedCropAndInterpolation(resolution, scale=crop_scale, ratio=crop_ratio, interpolation="bicubic"),
        transforms.RandomHorizontalFlip(flip),
    ]
    if rand_augment:
        grey = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)
        hparams = {"translate_const": int(resolution * 0.45), "img_mean": grey}
        try:
            steps.append(rand_augment_transform(rand_augment, hparams))
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"rand_augment: {rand_augment!r} is not in timm's notation (rand-m7-mstd0.5-inc1): {error}"
            ) from None
    steps.append(transforms.ToTensor())
    if erasing:
        # Erased areas are normal noise in normalised space, as in the released recipes.
        normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        undo = transforms.Normalize(
            [-m / s for m, s in zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)],
            [1 / s for s in IMAGENET_DEFAULT_STD],
        )
        steps += [normalise, RandomErasing(erasing, mode="pixel", device="cpu"), undo]
    composed: Transform = transforms.Compose(steps)
    return composed


def evaluation_transform(resolution: int, crop_fraction: float = 0.875) -> Transform:
    """Resize the short side to `resolution / crop_fraction` (bicubic), cut the centre."""
    composed: Transform = transforms.Compose(
        [
            transforms.Resize(round(resolution / crop_fraction), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
        ]
    )
    return composed
