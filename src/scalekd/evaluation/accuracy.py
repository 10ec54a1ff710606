"""Measure top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from scalekd.data import Batch, CorruptImages
from scalekd.evaluation.per_class import ClassCounts
from scalekd.hardware import Compute


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in percent over `images` images; `top5` is None with five classes or fewer."""

    top1: float
    top5: float | None
    images: int


def accuracy_metrics(num_classes: int) -> MetricCollection:
    """Build the metrics `top1` and, with more than five classes, `top5`, as fractions of all images."""
    metrics = {"top1": MulticlassAccuracy(num_classes, top_k=1, average="micro")}
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(dict(metrics))


def percentages(metrics: MetricCollection) -> dict[str, float]:
    """Return the values of `accuracy_metrics` in percent."""
    return {name: 100 * value.item() for name, value in metrics.compute().items()}


@torch.no_grad()  # not inference mode: a sharded model keeps tensors of its first forward, which training needs
def measure_accuracy(
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    num_classes: int,
    compute: Compute,
    corrupt: CorruptImages,
    blank: Tensor | None = None,
    further: ClassCounts | None = None,
) -> Accuracy:
    """Measure the accuracy of `logits` (images `[B, 3, h, w]` in [0, 1] -> `[B, K]`) over all batches.

    Args:
        logits: The classifier.
        batches: All batches, or those of this process.
        num_classes: Width of the logits.
        compute: The classifier's device, and the number format in which it runs.
        corrupt: Counter of unreadable images.
        blank: `[1, 3, h, w]`, run in place of a batch without images when all processes must run equally many batches.
        further: Counts of each class, which are updated with every batch.

    Raises:
        UserError: If there are more unreadable images than `corrupt` allows.
    """
    device = compute.device
    metrics = accuracy_metrics(num_classes).to(device)
    images = 0
    for batch in batches:
        corrupt.add(batch.corrupt)
        inputs = batch.images if len(batch.images) else blank
        if inputs is None:
            continue
        with compute.autocast():
            output = logits(inputs.to(device, non_blocking=True))
        if inputs is blank:
            continue
        answers, labels = output.float(), batch.labels.to(device, non_blocking=True)
        metrics.update(answers, labels)
        if further is not None:
            further.update(answers, labels)
        images += len(batch.images)
    result = percentages(metrics) if images else {}
    return Accuracy(top1=result.get("top1", 0.0), top5=result.get("top5"), images=images)
