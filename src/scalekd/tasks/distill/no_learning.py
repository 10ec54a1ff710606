"""Warnings for runs in which the student will learn, or has learned, nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scalekd.data import Split

_STEPS_PER_EPOCH, ENOUGH_STEPS = 10, 200  # a run with fewer steps per epoch or fewer in all gets a warning
_FEWEST_LOSSES, _CONSTANT = 3, 1e-3  # at least 3 logged losses within 0.1% of the largest count as constant


def few_steps(images: int, batch: int, epochs: int) -> str | None:
    """Return a warning if a run takes fewer than 200 steps, or 1,000 with fewer than 10 per epoch; None otherwise."""
    per_epoch = images // batch
    enough = ENOUGH_STEPS if per_epoch >= _STEPS_PER_EPOCH else 5 * ENOUGH_STEPS
    if per_epoch * epochs >= enough:
        return None
    flags, smaller = [], batch
    if per_epoch < _STEPS_PER_EPOCH and batch > 2:
        smaller = 2 ** int(math.log2(max(min(images // _STEPS_PER_EPOCH, batch - 1), 2)))
        flags.append(f"--batch {smaller} ({images // smaller} steps per epoch)")
    if images // smaller * epochs < ENOUGH_STEPS:
        flags.append(f"--epochs {math.ceil(ENOUGH_STEPS / (images // smaller))}")
    if not flags:  # too few images for any setting to help
        return None
    return (
        f"warning: {per_epoch * epochs} steps in all ({epochs} epochs of {per_epoch}) are too few to train a student; "
        f"use {' and '.join(flags)}"
    )


def nothing_learned(losses: Sequence[float], top1: float | None, validation: Split) -> list[str]:
    """Return the signs that the student of a finished run learned nothing, one sentence each; empty if there are none.

    Args:
        losses: The logged losses.
        top1: The last accuracy in percent; None if none was measured.
        validation: The validation images.
    """
    found = []
    if len(losses) >= _FEWEST_LOSSES and max(losses) - min(losses) <= _CONSTANT * max(map(abs, losses)):
        found.append(
            f"the loss was {losses[-1]:.4g} from the first logged step to the last: the student learned nothing "
            "(are the labels meaningless, or is the learning rate far too low or too high?)"
        )
    labels = validation.labels[validation.labels >= 0]
    if top1 is not None and len(labels):
        share = float(np.bincount(labels).max()) / len(labels)
        doubt = 2 * math.sqrt(share * (1 - share) / len(labels))  # two standard errors
        if top1 / 100 <= share + doubt:
            found.append(
                f"top1 {top1:.2f}% on {len(labels)} images is not significantly better than always predicting the most "
                f"frequent class ({100 * share:.1f}%, give or take {100 * doubt:.1f})"
            )
    return found
