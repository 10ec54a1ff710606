"""What a student says of labelled images: which classes it mistakes for which, and the images it gets most wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


class Answer(NamedTuple):
    """What was said of an image: its index in the split, its class, the one named, and how probable either was."""

    image: int
    label: int
    named: int
    probability: float
    named_probability: float


def answers(logits: Tensor, labels: Tensor, images: Tensor) -> list[Answer]:
    """The answers of logits `[B, K]` about images of these labels and indices, both `[B]`."""
    probabilities = logits.float().softmax(-1)
    named = logits.float().argmax(-1)  # as accuracy is measured: probabilities may be equal where logits are not
    best = probabilities.gather(1, named[:, None])[:, 0]
    own = probabilities.gather(1, labels[:, None])[:, 0]
    columns = (images.tolist(), labels.tolist(), named.tolist(), own.tolist(), best.tolist())
    return [Answer(*row) for row in zip(*columns, strict=True)]


def accuracy(given: list[Answer]) -> float:
    """Top-1 in percent."""
    return 100 * sum(answer.label == answer.named for answer in given) / len(given)


def confusion(given: list[Answer], classes: int) -> Numbers:
    """Images by their class (rows) and the class named (columns), `[K, K]`."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, ([answer.label for answer in given], [answer.named for answer in given]), 1)
    return counts


def mistaken(counts: Numbers, most: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: class, class named, images; the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(index // len(wrong)), int(index % len(wrong))) for index in order]
    return [(label, named, int(wrong[label, named])) for label, named in pairs if wrong[label, named]]


def worst(given: list[Answer], most: int) -> list[Answer]:
    """The wrong answers with the least probability for the right class, the worst first."""
    return sorted((answer for answer in given if answer.label != answer.named), key=lambda a: a.probability)[:most]
