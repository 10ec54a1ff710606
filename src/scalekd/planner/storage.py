"""Predicts how much disk space a teacher cache takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from scalekd.data.cache import Layout
from scalekd.data.cache.store import size
from scalekd.methods.outputs import TeacherLike
from scalekd.methods.share import FeatureShare


@dataclass(frozen=True)
class Storage:
    """Size of a teacher cache (`scalekd cache`). `str(storage)` is human-readable.

    Attributes:
        images: Number of images in the data.
        bf16: Bytes per image and view with tokens stored as bf16. A view is an image as augmented in one epoch.
        int8: Bytes per image and view with tokens stored as int8.
    """

    images: int
    bf16: int
    int8: int

    def __str__(self) -> str:
        return (
            f"{size(self.bf16)} per image and view: {size(self.images * self.bf16)} per view of {self.images:,} images "
            f"(int8 {size(self.images * self.int8)})"
        )


def storage(teacher: TeacherLike, images: int, dtype: torch.dtype, share: FeatureShare) -> Storage:
    """Predict the size of a cache, without the files' headers (less than 1 kB per file of up to 64 MiB).

    Args:
        teacher: The teacher.
        images: Number of images in the data.
        dtype: The autocast type.
        share: The images that have tokens.
    """
    return Storage(images, _bytes(teacher, dtype, share, "bf16"), _bytes(teacher, dtype, share, "int8"))


def _bytes(teacher: TeacherLike, dtype: torch.dtype, share: FeatureShare, cache_format: Literal["bf16", "int8"]) -> int:
    tokens = teacher.tokens
    return Layout(tokens.positions, tokens.channels, teacher.num_classes, dtype, cache_format, share).bytes_per_image
