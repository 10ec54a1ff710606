"""Signs that a run will teach, or has taught, its student nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from scalekd.data import Split

_STEPS_AN_EPOCH, _STEPS = 10, 200
_FEWEST_LOSSES, _CONSTANT = 3, 1e-3  # logged losses that tell, and how far apart they are relative to the largest


def few_steps(images: int, batch: int, epochs: int) -> str | None:
    """What to say where a run takes fewer than 10 steps an epoch or 200 in all; None where it takes more."""
    an_epoch = images // batch
    if an_epoch >= _STEPS_AN_EPOCH and an_epoch * epochs >= _STEPS:
        return None
    mends, smaller = [], batch
    if an_epoch < _STEPS_AN_EPOCH and batch > 2:
        smaller = 2 ** int(math.log2(max(min(images // _STEPS_AN_EPOCH, batch - 1), 2)))
        mends.append(f"--batch {smaller} ({images // smaller} steps an epoch)")
    if images // smaller * epochs < _STEPS:
        mends.append(f"--epochs {math.ceil(_STEPS / (images // smaller))}")
    if not mends:  # a handful of images
        return None
    return (
        f"warning: {an_epoch * epochs} steps in all ({epochs} epochs of {an_epoch}) teach a student little; "
        f"better take {' and '.join(mends)}"
    )


def logged_losses(metrics: Path) -> list[float]:
    """The losses in a run's log, oldest first."""
    losses = []
    for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
        with suppress(ValueError, TypeError, RecursionError, KeyError):  # a damaged line, or one without a loss
            losses.append(float(json.loads(line)["train/loss"]))
    return losses


def nothing_learned(losses: Sequence[float], top1: float | None, validation: Split) -> list[str]:
    """What speaks against a run that has ended, a sentence each; empty where nothing does.

    Args:
        losses: The logged losses.
        top1: The last accuracy in percent.
        validation: The images that it was measured on.
    """
    found = []
    if len(losses) >= _FEWEST_LOSSES and max(losses) - min(losses) <= _CONSTANT * max(map(abs, losses)):
        found.append(
            f"the loss was {losses[-1]:.4g} from the first logged step to the last: the student learned nothing "
            "(labels that say nothing, or a learning rate far too low or too high?)"
        )
    labels = validation.labels[validation.labels >= 0]
    if top1 is not None and len(labels):
        share = float(np.bincount(labels).max()) / len(labels)
        doubt = 2 * math.sqrt(share * (1 - share) / len(labels))  # two standard errors
        if top1 / 100 <= share + doubt:
            found.append(
                f"top1 {top1:.2f}% on {len(labels)} images cannot be told from naming always the most frequent class "
                f"({100 * share:.1f}%, give or take {100 * doubt:.1f})"
            )
    return found
