"""Reads the values of label images, numbers or colours, and maps them to class indices."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scalekd.data.decoding import UnreadableImageError, open_image
from scalekd.data.orientation import turned
from scalekd.errors import UserError
from scalekd.tasks.segmentation.schema import IGNORED, Segmentation, colour_in_words

_NUMBER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")  # PIL's modes of one channel
_WITH_ALPHA = {"LA": "L", "PA": "P", "RGBA": "RGB"}
_LOSSY = ("JPEG", "JPEG2000", "MPO")
_WRONG = 256  # marks values that stand for no class


def check_header(path: Path, image: Image.Image) -> None:
    """Refuse an opened file that cannot be a label image according to its header.

    Raises:
        UnreadableImageError: If the file is corrupt.
        UserError: If its compression changes values, it has several pages, or its channels are neither numbers nor RGB.
    """
    if image.format in _LOSSY:
        raise UserError(
            f"data: label image {path} is a {image.format} file, whose compression blends the values at edges; "
            "export the label images again as PNG"
        )
    try:
        pages = getattr(image, "n_frames", 1)  # some readers scan the file to count them, and may fail
    except Exception as error:
        raise UnreadableImageError(error) from error
    if pages > 1:
        raise UserError(f"data: label image {path} has {pages} pages; it must be one image of class numbers")
    if image.mode not in (*_NUMBER_MODES, *_WITH_ALPHA, "RGB"):
        raise UserError(
            f"data: label image {path} has channels {image.mode}; it must have one, of class numbers, or be RGB"
        )


class Values(NamedTuple):
    """Values of a label image.

    Attributes:
        numbers: Values `[h, w]`, after applying the image's orientation.
        coloured: Whether they are colours, `0xRRGGBB`.
        palette: Red, green and blue of each value in turn; None if the image has no palette.
    """

    numbers: NDArray[np.int64]
    coloured: bool
    palette: list[int] | None


def read_values(path: Path, max_pixels: int, *, as_colours: bool) -> Values:
    """Read the values of a label image without mapping them.

    One channel holds numbers. RGB holds colours, unless the three channels are equal: then it holds numbers too.

    Args:
        path: The file.
        max_pixels: Images with more pixels are refused as unreadable.
        as_colours: Whether to read colours in any case.

    Raises:
        UnreadableImageError: If the file is missing or corrupt.
        UserError: If it cannot be a label image.
    """
    with open_image(lambda: str(path), max_pixels) as image:
        check_header(path, image.stored)
        try:
            image.stored.load()
            opaque = _without_alpha(path, image.stored)
            palette = opaque.getpalette("RGB") if opaque.mode == "P" else None
            array = np.asarray(opaque.convert("RGB") if as_colours and opaque.mode in ("1", "L", "P") else opaque)
        except UserError:
            raise
        except Exception as error:  # PIL's readers may raise nearly any exception for a corrupt file
            raise UnreadableImageError(error) from error
    values = _whole(path, array)
    coloured = values.ndim == 3 and (as_colours or bool((values != values[..., :1]).any()))
    if coloured:
        values = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
    elif values.ndim == 3:
        values = values[..., 0]
    return Values(turned(torch.from_numpy(values), image.turn).numpy(), coloured, palette)


def _without_alpha(path: Path, image: Image.Image) -> Image.Image:
    """Remove an image's alpha channel.

    Raises:
        UserError: If alpha is not the same in all pixels.
    """
    if image.mode not in _WITH_ALPHA:
        return image
    low, high = image.getchannel("A").getextrema()
    if low != high:
        raise UserError(
            f"data: label image {path} has an alpha channel that differs from pixel to pixel, so its values are "
            "ambiguous; flatten it into one channel of class numbers"
        )
    plain = Image.fromarray(np.asarray(image)[..., : len(image.getbands()) - 1].squeeze())
    if image.mode == "PA":
        plain = Image.fromarray(np.asarray(plain), "P")
        plain.putpalette(image.getpalette("RGB") or [])
    return plain


def _whole(path: Path, array: NDArray[np.generic]) -> NDArray[np.int64]:
    """Convert numbers of any type to integers.

    Raises:
        UserError: If there are fractions.
    """
    whole = array.astype(np.int64)
    if array.dtype.kind == "f" and (whole != array).any():
        fraction = array[whole != array].flat[0]
        raise UserError(f"data: label image {path} holds fractions such as {fraction:g}; it must hold class numbers")
    return whole


class Coding:
    """Maps the values of label images to class indices.

    `map_values` is applied first. The resulting number means "unlabelled" if it is 255, or if it is 0 and
    `zero_is_unlabelled` is set; otherwise it is the number of a class.

    Args:
        recipe: The run's settings.

    Attributes:
        as_colours: Whether `map_values` maps colours; label images are then read as colours.
        first: Number of the first class.
    """

    def __init__(self, recipe: Segmentation) -> None:
        self.names, self.first = recipe.class_names, int(recipe.zero_is_unlabelled)
        self.mapping, self.as_colours = recipe.mapping, recipe.maps_colours
        self._max_pixels = recipe.max_pixels
        self._table = np.full(1 << (24 if self.as_colours else 16), _WRONG, np.uint16)
        if not self.as_colours:
            self._table[: IGNORED + 1] = [self._index(number) for number in range(IGNORED + 1)]
        for value, number in self.mapping.items():
            self._table[value] = self._index(number)

    def _index(self, number: int) -> int:
        if number == IGNORED or number < self.first:
            return IGNORED
        return number - self.first if number - self.first < len(self.names) else _WRONG

    def index(self, value: int) -> int | None:
        """Return the class index of a value, 255 if it means "unlabelled", None if it stands for no class."""
        known = 0 <= value < len(self._table) and self._table[value] != _WRONG
        return int(self._table[value]) if known else None

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read a label image as class indices `[h, w]` from 0, with 255 for pixels without a label.

        Raises:
            UnreadableImageError: If the file is missing or corrupt.
            UserError: If a value stands for no class.
        """
        values, coloured, _ = read_values(path, self._max_pixels, as_colours=self.as_colours)
        outside = (values < 0) | (values >= len(self._table))
        indices = np.where(outside, _WRONG, self._table[np.where(outside, 0, values)])
        if coloured is not self.as_colours or (indices == _WRONG).any():
            raise UserError(self.refusal(path, int(values[indices == _WRONG].max(initial=0)), coloured))
        return indices.astype(np.uint8)

    def refusal(self, path: Path, value: int, coloured: bool) -> str:
        """Return the first part of an error message, which says why a value is refused but not how to fix it."""
        where = f"data: label image {path} has the"
        if coloured and not self.as_colours:
            return f"{where} channels RGB with colours, but one channel of class numbers is expected"
        if self.as_colours and not coloured:
            return f"data: label image {path} has no colours, but map_values names colours"
        if self.as_colours:
            return f"{where} colour {colour_in_words(value)}, which is not in map_values"
        last = len(self.names) - 1 + self.first
        return f"{where} value {value}, but there are {len(self.names)} classes, numbered {self.first} to {last}"

    def colours(self, path: Path) -> list[tuple[int, int, int]] | None:
        """Return a colour for each class from `map_values` or the image's palette; None if they do not have one."""
        values = [next((v for v in self._candidates() if self.index(v) == n), None) for n in range(len(self.names))]
        if self.as_colours:
            found = [0 if value is None else value for value in values]
            return [(value >> 16, value >> 8 & 255, value & 255) for value in found] if None not in values else None
        try:
            own = read_values(path, self._max_pixels, as_colours=False).palette
        except UnreadableImageError:
            own = None
        if own is None or any(value is None or len(own) < 3 * (value + 1) for value in values):
            return None
        return [(own[3 * v], own[3 * v + 1], own[3 * v + 2]) for v in values if v is not None]

    def _candidates(self) -> list[int]:
        """Return the values that may stand for a class, those of `map_values` first."""
        return [*self.mapping, *([] if self.as_colours else range(IGNORED + 1))]
