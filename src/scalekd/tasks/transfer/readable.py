"""Reads an image of a split, or the next one if it is unreadable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from scalekd.data.decoding import UnreadableImageError

T = TypeVar("T")


def first_readable(
    read: Callable[[int], T], index: int, images: int, *, substitute: bool
) -> tuple[tuple[int, T] | None, dict[int, str]]:
    """Read an image or, if it is unreadable and `substitute` is set, the next one that can be read.

    Args:
        read: Reads the image of an index.
        index: Index of the image.
        images: Number of images in the split; the first one follows the last.
        substitute: Whether an unreadable image is replaced (training, where batches keep their size).

    Returns:
        The index of the image that was read and what `read` returned, or None if there is none; and the reason of each
        unreadable image, by index.
    """
    reasons: dict[int, str] = {}
    for offset in range(images if substitute else 1):
        candidate = (index + offset) % images
        try:
            return (candidate, read(candidate)), reasons
        except UnreadableImageError as error:
            reasons[candidate] = str(error)
    return None, reasons
