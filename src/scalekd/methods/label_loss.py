"""Losses on labels, for batches in which some images may have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Convert indices `[B]` to float32 `[B, K]`, a row of zeros for -1; return probabilities `[B, K]` as is."""
    if labels.ndim > 1:
        return labels
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy: the sum over the labelled images, divided by the number of all images.

    Each image has the same weight regardless of the rest of its batch, and gradients add up over micro-batches.

    Args:
        logits: `[B, K]`.
        labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`.
        label_smoothing: Smoothing of indices; probabilities are used as is.

    Returns:
        A scalar.
    """
    if labels.ndim > 1:
        return F.cross_entropy(logits, labels)
    total = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum")
    return total / len(labels)


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
