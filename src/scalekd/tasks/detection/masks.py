"""Decodes and checks masks in COCO's formats: polygons and run-length encodings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scalekd.data.decoding import MAX_PIXELS
from scalekd.errors import UserError
from scalekd.tasks.detection.annotations import Mask
from scalekd.tasks.detection.coco_eval import rle_tools

_POINTS = 6  # coordinates of the smallest polygon, a triangle
_FAR = 10  # a polygon may extend to this many times the image's longer side


def decode_mask(mask: Mask, height: int, width: int) -> Tensor:
    """Decode polygons or a run-length encoding to `[h, w]` of 0 and 1, uint8."""
    decoded = rle_tools.decode(rle_tools.segmToRle(mask, width, height))
    return torch.from_numpy(np.ascontiguousarray(decoded))


def box_of(mask: Mask, height: int, width: int) -> list[float]:
    """Compute the bounding box of a mask: `[x, y, width, height]` in pixels."""
    if isinstance(mask, list):
        xs, ys = ([number for polygon in mask for number in polygon[start::2]] for start in (0, 1))
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    box: list[float] = rle_tools.toBbox(rle_tools.segmToRle(mask, width, height)).tolist()
    return box


def usable_mask(mask: Mask, height: int, width: int, where: str) -> Mask | None:
    """Check a mask and remove polygons of fewer than three points; return None if no area is left.

    Args:
        mask: The mask as in the file.
        height: Height of its image in pixels.
        width: Width of its image in pixels.
        where: File and annotation, for errors.

    Raises:
        UserError: If a polygon extends far outside the image, or an encoding has the wrong size or cannot be decoded.
    """
    if isinstance(mask, list):
        farthest = max((abs(number) for polygon in mask for number in polygon), default=0)
        if farthest > _FAR * max(width, height):  # the time to draw its outline grows with its length
            raise UserError(f"data: {where} has a polygon that goes to {farthest:g}, far outside its image; fix it")
        polygons = [polygon for polygon in mask if len(polygon) >= _POINTS and len(polygon) % 2 == 0]
        return polygons if any(_has_area(polygon) for polygon in polygons) else None
    if mask["size"] != [height, width]:
        raise UserError(f"data: {where} has a mask of {mask['size']}, but its image is of {[height, width]}; fix it")
    if width * height > MAX_PIXELS:
        return mask  # reading the image will report that it is too large
    try:
        return mask if decode_mask(mask, height, width).any() else None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data: {where} has a mask that cannot be decoded ({error}); export it again") from None


def _has_area(polygon: list[float]) -> bool:
    """Whether the points of a polygon are not all in one row or column."""
    return len(set(polygon[::2])) > 1 and len(set(polygon[1::2])) > 1
