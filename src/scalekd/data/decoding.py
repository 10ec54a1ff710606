"""From an image file to the pixels that a transform needs, as 8-bit RGB tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels
# What a file may hold, whatever its name says. PIL knows more, and would run Ghostscript for one of them.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class UnreadableImageError(Exception):
    """A file that is missing, no image, or spoilt."""


@contextmanager
def _naming_what_is_unreadable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # PIL's readers meet nearly any in a spoilt file
        raise UnreadableImageError(error) from error


def open_image(source: Callable[[], str | IO[bytes]]) -> Image.Image:
    """Open an image and read its header: size and mode are known, pixels are not decoded yet.

    Args:
        source: Gives its path or its bytes; may raise OSError.

    Raises:
        UnreadableImageError: If it is missing or no image.
    """
    with _naming_what_is_unreadable():
        file = source()
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for
            raise ValueError("no regular file")
        return Image.open(file, formats=_FORMATS)


def read(image: Image.Image) -> Tensor:
    """Decode the whole of an opened image of any mode: `[3, h, w]`, uint8.

    Raises:
        UnreadableImageError: If the file is spoilt.
    """
    with _naming_what_is_unreadable():
        image.load()
        return to_tensor(image)


def read_crop(image: Image.Image, box: Box, side: int, *, remain: int = 2) -> Tensor:
    """Decode an opened image and resize what is in `box` to a square, bicubic: `[3, side, side]`, uint8.

    JPEG files are decoded at a half, a quarter or an eighth of their size where enough pixels remain; at the box's
    edges the interpolation then sees what lies outside.

    Args:
        image: From `open_image`.
        box: What to take, in pixels of the whole image.
        side: Rows and columns wanted.
        remain: Times as many of them as reduced decoding must leave; PIL's thumbnails take 2, too.

    Raises:
        UnreadableImageError: If the file is spoilt.
    """
    left, upper, right, lower = box
    width, height = image.size
    shrink = min(right - left, lower - upper) // (remain * side)
    with _naming_what_is_unreadable():
        if shrink >= 2 and (drafted := image.draft(None, (width // shrink, height // shrink))):
            scale = width / drafted[1][2]
            part = (left / scale, upper / scale, right / scale, lower / scale)
            image.load()
            return to_tensor(_to_rgb(image).resize((side, side), Image.Resampling.BICUBIC, box=part))
        return resize(to_tensor(image.crop(box)), [side, side])


def resize(image: Tensor, size: list[int]) -> Tensor:
    """Bicubic, with antialiasing; as PIL does it up to rounding, in a third of the time. `size` as in torchvision."""
    resized: Tensor = F.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return resized


def to_tensor(image: Image.Image) -> Tensor:
    """An image of any mode as `[3, h, w]`, uint8."""
    tensor: Tensor = F.pil_to_tensor(_to_rgb(image))
    return tensor


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; 16-bit greys are scaled, where PIL would cut them off at 255."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGB")
