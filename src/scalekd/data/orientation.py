"""Apply EXIF orientation: images may be stored rotated or mirrored, and are shown upright."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels


class Turn(NamedTuple):
    """How to make stored pixels upright: optionally transpose, then optionally reverse rows and columns."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False


AS_STORED = Turn()
# By value of the EXIF tag Orientation (EXIF 2.32, section 4.6.4); 1 and all values not listed mean upright as stored.
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
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where PIL looks for an orientation


def read_turn(image: Image.Image) -> Turn:
    """Read how an opened image, not decoded yet, must be turned; a corrupt EXIF block is ignored, as viewers do."""
    if image.format in _TURNED_BY_THEIR_READER or not any(key in image.info for key in _METADATA):
        return AS_STORED
    try:
        orientation = Image.Image.getexif(image).get(Base.Orientation)  # PngImageFile's own method would decode it
    except Exception:  # PIL's EXIF reader raises nearly any exception on a corrupt block
        return AS_STORED
    return _TURNS.get(orientation, AS_STORED) if isinstance(orientation, int) else AS_STORED


def turned_size(size: tuple[int, int], turn: Turn) -> tuple[int, int]:
    """Convert the stored width and height to those of the upright image, or vice versa."""
    return (size[1], size[0]) if turn.transposed else size


def stored_box(box: Box, size: tuple[int, int], turn: Turn) -> Box:
    """Convert a box in the upright image, whose width and height are `size`, to stored pixels."""
    (left, upper, right, lower), (width, height) = box, size
    if turn.columns_reversed:
        left, right = width - right, width - left
    if turn.rows_reversed:
        upper, lower = height - lower, height - upper
    return (upper, left, lower, right) if turn.transposed else (left, upper, right, lower)


def turned(pixels: Tensor, turn: Turn) -> Tensor:
    """Make stored pixels `[..., h, w]` upright."""
    if turn == AS_STORED:
        return pixels
    if turn.transposed:
        pixels = pixels.transpose(-2, -1)
    reversed_axes = [axis for axis, so in ((-2, turn.rows_reversed), (-1, turn.columns_reversed)) if so]
    return pixels.flip(reversed_axes).contiguous()
