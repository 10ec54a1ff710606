"""Losses on labels, for batches in which some images may have none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Convert indices `[B]` to float32 `[B, K]`, a row of zeros for -1; return probabilities `[B, K]` as is."""
    if labels.ndim > 1:
        return labels
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy: the sum over the labelled images, divided by the number of all images.

    Each image has the same weight regardless of the rest of its batch, and gradients add up over micro-batches.

    Args:
        logits: `[B, K]`.
        labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`.
        label_smoothing: Smoothing of indices; probabilities are used as is.
        weight: Weight of each class `[K]`; None for 1.

    Returns:
        A scalar.
    """
    if labels.ndim > 1:
        return F.cross_entropy(logits, labels, weight)
    total = F.cross_entropy(logits, labels, weight, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum")
    return total / len(labels)


class BalancedCrossEntropy(nn.Module):
    """`cross_entropy` in which a class counts more the fewer images it has: all classes weigh the same together.

    The weight of a class is `n / (K n_c)`, as in scikit-learn; its mean over the labelled images is 1.

    Args:
        counts: Number of labelled training images of each class, `n_c`. A class without any has weight 0.
        label_smoothing: See `cross_entropy`.
    """

    weight: Tensor

    def __init__(self, counts: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        found = torch.tensor(counts, dtype=torch.float32)
        weight = torch.where(found > 0, found.sum() / ((found > 0).sum() * found.clamp(min=1)), 0.0)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, self.label_smoothing, self.weight)


def binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy over one-hot targets, summed over classes and averaged over images as in `cross_entropy`.

    Args:
        logits: `[B, K]`.
        labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`.
        label_smoothing: The target is `1 - s + s / K` for the label and `s / K` for other classes; probabilities are
            used as is.

    Returns:
        A scalar.
    """
    target = one_hot(labels, logits.shape[1])
    if labels.ndim == 1:
        target = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    return (losses * (labels >= 0) if labels.ndim == 1 else losses).mean()


def multi_label_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of several labels per image, summed over classes and averaged over all images.

    Args:
        logits: `[B, K]`.
        labels: `[B, K]`: 1 for a class of the image, 0 for another, -1 where it is not known, which adds 0. Indices
            `[B]` are taken as single classes.
        label_smoothing: The targets are `1 - s / 2` and `s / 2`.

    Returns:
        A scalar.
    """
    labels = one_hot(labels, logits.shape[1])
    target = labels * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * (labels >= 0)).sum(-1).mean()
