"""Linear probe: a classifier head fitted on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from scalekd.data import Batch, CorruptImages
from scalekd.errors import UserError
from scalekd.hardware import Compute

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
_CERTAIN = 10.0  # logit of a class that no image has


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on features.

    Attributes:
        weight: `[K, D]`.
        bias: `[K]`.
        regularisation: The chosen inverse regularisation strength `C`.
        heldout: Accuracy (with several labels per image, mean average precision) in percent on the held-out part of the
            training features with this `C`.
    """

    weight: Tensor
    bias: Tensor
    regularisation: float
    heldout: float


@torch.inference_mode()
def collect_features(
    features: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    compute: Compute,
    corrupt: CorruptImages,
) -> tuple[Floats, Labels]:
    """Run `features` (images `[B, 3, h, w]` -> `[B, D]`) on all batches: features `[n, D]` and labels `[n]`."""
    collected, labels = [], []
    for batch in batches:
        corrupt.add(batch.corrupt)
        if len(batch.images):
            with compute.autocast():
                collected.append(features(batch.images.to(compute.device, non_blocking=True)).float().cpu())
            labels.append(batch.labels)
    return torch.cat(collected).numpy(), torch.cat(labels).numpy()


def fit_linear_head(
    features: Floats,
    labels: Labels,
    *,
    balanced: bool = False,
    seed: int = 0,
    choices: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0),
) -> LinearHead:
    """Fit multinomial logistic regression on standardised features; `C` is chosen on a held-out tenth.

    With several labels per image, there is one regression for each class.

    Args:
        features: `[n, D]`.
        labels: `[n]`, class indices; with several labels per image `[n, K]`, 1 for a class of the image.
        balanced: Whether all classes count the same in the fit and in the choice of `C`, however many images they have.
        seed: Seed of the held-out split.
        choices: Inverse regularisation strengths `C` to try.

    Returns:
        The head for unstandardised features.

    Raises:
        UserError: If a class has fewer than three images and there is one label per image.
    """
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    if labels.ndim > 1:
        return _fit_classes(scaled, labels, scaler, seed, choices)
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 3:
        raise UserError(f"probe: a class has {counts[counts > 0].min()} training image(s); at least 3 are needed")
    heldout = max(round(0.1 * len(labels)), int((counts > 0).sum()))
    fit_x, held_x, fit_y, held_y = train_test_split(
        scaled, labels, test_size=heldout, random_state=seed, stratify=labels
    )
    weights = "balanced" if balanced else None
    score = balanced_accuracy_score if balanced else accuracy_score

    def fit(c: float, x: Floats, y: Labels) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=1000, class_weight=weights).fit(x, y)

    scores = {c: float(score(held_y, fit(c, fit_x, fit_y).predict(held_x))) for c in choices}
    best = max(scores, key=scores.__getitem__)
    model = fit(best, scaled, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one logit for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return _head(weight, bias, scaler, best, scores[best])


def _fit_classes(
    scaled: Floats, labels: Labels, scaler: StandardScaler, seed: int, choices: Sequence[float]
) -> LinearHead:
    """Fit one logistic regression per class; `C` has the highest mean average precision on a held-out tenth."""
    held = np.random.default_rng(seed).permutation(len(labels)) < max(1, len(labels) // 10)

    def fit(c: float, rows: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        weight, bias = np.zeros((labels.shape[1], scaled.shape[1])), np.full(labels.shape[1], -_CERTAIN)
        for index, own in enumerate(labels[rows].T):
            if len(np.unique(own)) == 1:  # no image of a rare class, or all of a common one
                bias[index] = _CERTAIN if own[0] else -_CERTAIN
                continue
            model = LogisticRegression(C=c, max_iter=1000).fit(scaled[rows], own)
            weight[index], bias[index] = model.coef_[0], model.intercept_[0]
        return weight, bias

    def score(c: float) -> float:
        weight, bias = fit(c, ~held)
        there = labels[held].any(0)
        scores = (scaled[held] @ weight.T + bias)[:, there]
        return float(average_precision_score(labels[held][:, there], scores)) if there.any() else 0.0

    scores = {c: score(c) for c in choices}
    best = max(scores, key=scores.__getitem__)
    return _head(*fit(best, np.ones(len(labels), bool)), scaler, best, scores[best])


def _head(
    weight: NDArray[Any], bias: NDArray[Any], scaler: StandardScaler, chosen: float, heldout: float
) -> LinearHead:
    """Return the head for unstandardised features."""
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    return LinearHead(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias).float(),
        regularisation=chosen,
        heldout=100 * heldout,
    )
