"""Evaluate frozen features by k nearest neighbours and by a linear probe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from scalekd.evaluation.probe import Floats, Labels, fit_linear_head

NEIGHBOURS = 20
TEMPERATURE = 0.07


class Features(NamedTuple):
    """Features `[n, D]` of the images of a split, and their labels `[n]`."""

    values: Floats
    labels: Labels


def knn_accuracy(train: Features, val: Features, *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE) -> float:
    """Return the top-1 accuracy in percent of a vote of the `k` nearest training images (all, if there are fewer).

    Distance is by cosine, and a vote has the weight `exp(cosine / temperature)`, both as in DINO (arXiv 2104.14294).
    """
    votes = KNeighborsClassifier(
        n_neighbors=min(k, len(train.labels)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1 - distances) / temperature),
    )
    return 100 * float(votes.fit(*train).score(*val))


def linear_accuracy(train: Features, val: Features, *, seed: int = 0) -> float:
    """Return the top-1 accuracy in percent of a linear head fitted on the training features; see `fit_linear_head`.

    Raises:
        UserError: If a class has fewer than three images.
    """
    head = fit_linear_head(train.values, train.labels, seed=seed)
    logits = val.values @ head.weight.numpy().T + head.bias.numpy()
    return 100 * float((logits.argmax(1) == val.labels).mean())
