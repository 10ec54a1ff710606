"""Linear probe: a classifier head fitted on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from scalekd.data import Batch, CorruptImages
from scalekd.errors import UserError
from scalekd.hardware import Compute

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on features.

    Attributes:
        weight: `[K, D]`.
        bias: `[K]`.
        regularisation: The chosen inverse regularisation strength `C`.
        heldout: Accuracy in percent on the held-out part of the training features with this `C`.
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
    features: Floats, labels: Labels, *, seed: int = 0, choices: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
) -> LinearHead:
    """Fit multinomial logistic regression on standardised features; `C` is chosen on a held-out tenth.

    Args:
        features: `[n, D]`.
        labels: `[n]`, class indices.
        seed: Seed of the held-out split.
        choices: Inverse regularisation strengths `C` to try.

    Returns:
        The head for unstandardised features.

    Raises:
        UserError: If a class has fewer than three images.
    """
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 3:
        raise UserError(f"probe: a class has {counts[counts > 0].min()} training image(s); at least 3 are needed")
    heldout = max(round(0.1 * len(labels)), int((counts > 0).sum()))
    fit_x, held_x, fit_y, held_y = train_test_split(
        scaled, labels, test_size=heldout, random_state=seed, stratify=labels
    )
    scores = {c: LogisticRegression(C=c, max_iter=1000).fit(fit_x, fit_y).score(held_x, held_y) for c in choices}
    best = max(scores, key=scores.__getitem__)
    model = LogisticRegression(C=best, max_iter=1000).fit(scaled, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one logit for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    return LinearHead(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias).float(),
        regularisation=best,
        heldout=100 * scores[best],
    )
