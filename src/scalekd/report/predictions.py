"""Predictions on labelled images: accuracy, confusion matrix, most frequent mistakes and worst-classified images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


class Answer(NamedTuple):
    """The prediction for one image.

    Attributes:
        image: Index of the image in its split.
        label: Index of the true class.
        named: Index of the predicted class.
        probability: Predicted probability of the true class.
        named_probability: Predicted probability of the predicted class.
    """

    image: int
    label: int
    named: int
    probability: float
    named_probability: float


def answers(logits: Tensor, labels: Tensor, images: Tensor) -> list[Answer]:
    """Turn logits `[B, K]` into predictions.

    Args:
        logits: `[B, K]`.
        labels: True classes, `[B]`.
        images: Indices of the images in their split, `[B]`.
    """
    probabilities = logits.float().softmax(-1)
    # Accuracy is measured on logits too: different logits may round to equal probabilities.
    named = logits.float().argmax(-1)
    best = probabilities.gather(1, named[:, None])[:, 0]
    own = probabilities.gather(1, labels[:, None])[:, 0]
    columns = (images.tolist(), labels.tolist(), named.tolist(), own.tolist(), best.tolist())
    return [Answer(*row) for row in zip(*columns, strict=True)]


def accuracy(given: list[Answer]) -> float:
    """Return the top-1 accuracy in percent."""
    return 100 * sum(answer.label == answer.named for answer in given) / len(given)


def confusion(given: list[Answer], classes: int) -> Numbers:
    """Count images by true class (rows) and predicted class (columns), `[K, K]`."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, ([answer.label for answer in given], [answer.named for answer in given]), 1)
    return counts


def mistaken(counts: Numbers, most: int) -> list[tuple[int, int, int]]:
    """Return the `most` most frequent mistakes as (true class, predicted class, images), most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(index // len(wrong)), int(index % len(wrong))) for index in order]
    return [(label, named, int(wrong[label, named])) for label, named in pairs if wrong[label, named]]


def worst(given: list[Answer], most: int) -> list[Answer]:
    """Return the `most` wrong predictions with the lowest probability of the true class, lowest first."""
    return sorted((answer for answer in given if answer.label != answer.named), key=lambda a: a.probability)[:most]
