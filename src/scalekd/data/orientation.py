"""How a picture is stored, turned or mirrored, and how it is shown: upright, as its EXIF orientation says."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels


class Turn(NamedTuple):
    """From stored pixels to the upright picture: rows and columns change places, then each may be reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False


AS_STORED = Turn()
# By the value of the EXIF tag Orientation (EXIF 2.32, section 4.6.4); 1 and all that is not listed is upright already.
_TURNS = {
    2: Turn(columns_reversed=True),
    3: Turn(rows_reversed=True, columns_reversed=True),
    4: Turn(rows_reversed=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, columns_reversed=True),
    7: Turn(transposed=True, rows_reversed=True, columns_reversed=True),
    8: Turn(transposed=True, rows_reversed=True),
}
_TURNED_BY_THEIR_READER = ("TIFF", "HEIF")
_TELLING = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # what PIL finds an orientation in


def read_turn(image: Image.Image) -> Turn:
    """How an opened image, not decoded yet, is to be turned; a damaged EXIF block says nothing, as for viewers."""
    if image.format in _TURNED_BY_THEIR_READER or not any(key in image.info for key in _TELLING):
        return AS_STORED
    try:
        orientation = Image.Image.getexif(image).get(Base.Orientation)  # a PNG file's own method would decode it
    except Exception:  # PIL's reader of EXIF meets nearly any in a corrupt block
        return AS_STORED
    return _TURNS.get(orientation, AS_STORED) if isinstance(orientation, int) else AS_STORED


def turned_size(size: tuple[int, int], turn: Turn) -> tuple[int, int]:
    """Width and height of the upright picture, of those stored; or the other way round."""
    return (size[1], size[0]) if turn.transposed else size


def stored_box(box: Box, size: tuple[int, int], turn: Turn) -> Box:
    """Where a box of the upright picture, whose width and height are `size`, is among the stored pixels."""
    (left, upper, right, lower), (width, height) = box, size
    if turn.columns_reversed:
        left, right = width - right, width - left
    if turn.rows_reversed:
        upper, lower = height - lower, height - upper
    return (upper, left, lower, right) if turn.transposed else (left, upper, right, lower)


def turned(pixels: Tensor, turn: Turn) -> Tensor:
    """Stored pixels `[..., h, w]` as the upright picture shows them."""
    if turn == AS_STORED:
        return pixels
    if turn.transposed:
        pixels = pixels.transpose(-2, -1)
    reversed_axes = [axis for axis, so in ((-2, turn.rows_reversed), (-1, turn.columns_reversed)) if so]
    return pixels.flip(reversed_axes).contiguous()
