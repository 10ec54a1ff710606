"""Chooses epochs, batch, learning rate and warm-up by the number of training images, for the recipe own-images.

The rules are ours: see docs/recipes.md. Keys that the user sets are kept, and the others follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from scalekd.recipes.schema import Recipe

CHOSEN = ("batch", "epochs", "lr", "warmup_epochs", "validate_every")
_STEPS_PER_EPOCH = 16  # at least, if there are enough images
_BATCHES = (8, 256)
# Images to view in the whole run, and the fewest and the most epochs: from random weights, and from trained ones.
_FROM_SCRATCH = (200_000, 30, 200)
_FROM_WEIGHTS = (50_000, 10, 50)
_RATE, _RATE_BATCH = 1e-3, 32
_VALIDATIONS = 20


def choose_sizes(images: int, given: Recipe, own: Collection[str]) -> dict[str, Any]:
    """Choose the keys that depend on the number of images.

    Args:
        images: Number of training images, with and without labels.
        given: The settings.
        own: The keys that are set, which are kept.

    Returns:
        The keys in `CHOSEN`, without those that are set.
    """
    batch = given.batch if "batch" in own else _batch(images)
    viewed, fewest, most = _FROM_WEIGHTS if given.starts_from_weights else _FROM_SCRATCH
    epochs = given.epochs if "epochs" in own else min(max(round(viewed / max(images, 1)), fewest), most)
    chosen: dict[str, Any] = {
        "batch": batch,
        "epochs": epochs,
        "lr": float(f"{_RATE * math.sqrt(batch / _RATE_BATCH):.2g}"),  # as the batch's noise, for adaptive optimisers
        "warmup_epochs": min(max(1, epochs // 20), epochs - 1),
        "validate_every": max(1, epochs // _VALIDATIONS),
    }
    return {key: value for key, value in chosen.items() if key not in own}


def _batch(images: int) -> int:
    """Return the largest power of two that gives enough steps per epoch, within limits and the number of images."""
    fewest, most = _BATCHES
    enough_steps = 1 << (max(images // _STEPS_PER_EPOCH, 1).bit_length() - 1)
    return min(most, max(min(fewest, images), enough_steps))
