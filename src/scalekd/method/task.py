"""Losses on labels, for batches in which some images may have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Indices `[B]` -> float32 `[B, K]`; a row of zeros for -1. Probabilities `[B, K]` stay as they are."""
    if labels.ndim > 1:
        return labels
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy, the mean over the labelled images.

    Args:
        logits: `[B, K]`.
        labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`.
        label_smoothing: Smoothing of indices; probabilities are taken as they are.

    Returns:
        A scalar; 0 if no image is labelled.
    """
    if labels.ndim > 1:
        return F.cross_entropy(logits, labels)
    # No look at the values from Python: that would wait for the GPU.
    total = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy over one-hot targets, summed over classes; the mean over the labelled images.

    Args:
        logits: `[B, K]`.
        labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`.
        label_smoothing: The target is `1 - s + s / K` for the label and `s / K` for other classes; probabilities are
            taken as they are.

    Returns:
        A scalar; 0 if no image is labelled.
    """
    classes = logits.shape[1]
    target = one_hot(labels, classes)
    if labels.ndim > 1:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()
    target = target * (1 - label_smoothing) + label_smoothing / classes
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    labelled = labels >= 0
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)
