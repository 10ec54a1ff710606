"""Masks of objects as COCO writes them: polygons or run-length encodings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scalekd.data.decoding import MAX_PIXELS
from scalekd.errors import UserError
from scalekd.tasks.detection.annotations import Mask
from scalekd.tasks.detection.extra import rle_tools

_POINTS = 6  # numbers of the smallest polygon, a triangle
_FAR = 10  # times the image's longer side


def decode_mask(mask: Mask, height: int, width: int) -> Tensor:
    """Polygons or a run-length encoding -> `[h, w]` of 0 and 1, uint8."""
    decoded = rle_tools.decode(rle_tools.segmToRle(mask, width, height))
    return torch.from_numpy(np.ascontiguousarray(decoded))


def box_of(mask: Mask, height: int, width: int) -> list[float]:
    """The box around a mask: `[x, y, width, height]`."""
    if isinstance(mask, list):
        xs, ys = ([number for polygon in mask for number in polygon[start::2]] for start in (0, 1))
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    box: list[float] = rle_tools.toBbox(rle_tools.segmToRle(mask, width, height)).tolist()
    return box


def usable_mask(mask: Mask, height: int, width: int, where: str) -> Mask | None:
    """A mask that can be decoded, without polygons of less than three points; None where it has no area.

    Args:
        mask: As in the file.
        height: Of its image.
        width: Of its image.
        where: Names file and annotation in an error.

    Raises:
        UserError: If a polygon leads far away, or an encoding is of another size or cannot be decoded.
    """
    if isinstance(mask, list):
        farthest = max((abs(number) for polygon in mask for number in polygon), default=0)
        if farthest > _FAR * max(width, height):  # drawing its outline would take ages
            raise UserError(f"data: {where} has a polygon that goes to {farthest:g}, far outside its image; mend it")
        polygons = [polygon for polygon in mask if len(polygon) >= _POINTS and len(polygon) % 2 == 0]
        return polygons if any(_has_area(polygon) for polygon in polygons) else None
    if mask["size"] != [height, width]:
        raise UserError(f"data: {where} has a mask of {mask['size']}, but its image is of {[height, width]}")
    if width * height > MAX_PIXELS:
        return mask  # its image is told of when it is read
    try:
        return mask if decode_mask(mask, height, width).any() else None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data: {where} has a mask that cannot be decoded: {error}") from None


def _has_area(polygon: list[float]) -> bool:
    """Whether its points are not all in one row or column."""
    return len(set(polygon[::2])) > 1 and len(set(polygon[1::2])) > 1
