"""Refuses splits that a run cannot use: shared images, fewer images than the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from scalekd.data.overlap import shared_files
from scalekd.errors import UserError


def refuse_shared(training: Iterable[Path], validation: Sequence[Path], fix: str) -> None:
    """Check that no validation image is also a training image.

    Args:
        training: The files of the training images.
        validation: The files of the validation images.
        fix: What to do, for the error.

    Raises:
        UserError: If one is; names it.
    """
    shared = shared_files(training, validation)
    if shared:
        raise UserError(
            f"val_split: {len(shared)} of its {len(validation)} images are also training images, the first "
            f"{shared[0]}: validation would measure training images; {fix}"
        )


def refuse_large_batch(batch: int, images: int) -> None:
    """Check that the training images fill a batch.

    Raises:
        UserError: If they do not.
    """
    if batch > images:
        raise UserError(f"batch: {batch} is larger than the {images} training images; set it to {images} or less")
