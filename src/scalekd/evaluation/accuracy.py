"""Measure top-1 and top-5 accuracy or, with several labels per image, mean average precision and F1."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities.data import dim_zero_cat

from scalekd.data import Batch, CorruptImages
from scalekd.evaluation.per_class import ClassCounts
from scalekd.hardware import Compute


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a classifier.

    Attributes:
        figures: The values of `accuracy_metrics` in percent.
        images: Number of images that were measured.
    """

    figures: dict[str, float]
    images: int

    @property
    def metric(self) -> str:
        """Name of the main figure: `top1`, or `map` with several labels per image."""
        return main_metric(self.figures)

    @property
    def main(self) -> float:
        """The main figure in percent."""
        return self.figures[self.metric]


class MeanAveragePrecision(MultilabelAveragePrecision):
    """The mean of the average precision of the classes that have an image: torchmetrics counts the others as 0.

    Its state begins with one unlabelled image, which counts in no class, because torchmetrics cannot gather an empty
    state from a process that has no image.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none", ignore_index=-1)
        self._begin()

    def reset(self) -> None:
        super().reset()
        self._begin()

    def _begin(self) -> None:
        self.preds.append(torch.zeros(1, self.num_labels, device=self.device))
        self.target.append(torch.full((1, self.num_labels), -1, device=self.device))

    def compute(self) -> Tensor:  # type: ignore[override]  # as that of the parent class is
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples found")  # they are left out below
            precisions = super().compute()
        return _mean(precisions, (dim_zero_cat(self.target) > 0).any(0))


class MeanF1(MultilabelF1Score):
    """The mean of F1 over the classes that have an image."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none", ignore_index=-1)

    def compute(self) -> Tensor:
        return _mean(super().compute(), torch.as_tensor(self.tp) + torch.as_tensor(self.fn) > 0)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return values[counted].mean() if counted.any() else values.new_zeros(())


def main_metric(names: Container[str]) -> str:
    """Return the name of the figure that stands for all of `accuracy_metrics`."""
    return "map" if "map" in names else "top1"


def accuracy_metrics(num_classes: int, *, multi_label: bool = False) -> MetricCollection:
    """Build the metrics of a classifier, as fractions; `update_metrics` updates them.

    They are `top1` and, with more than five classes, `top5`, over all images. With several labels per image they are
    `map`, the mean over the classes of the average precision, and `f1`, the mean of F1 where a probability of 0.5
    decides; classes without a labelled image do not count.
    """
    if multi_label:
        return MetricCollection(
            {
                "map": MeanAveragePrecision(num_classes),
                "f1": MeanF1(num_classes),
            }
        )
    metrics: dict[str, Metric | MetricCollection] = {"top1": MulticlassAccuracy(num_classes, top_k=1, average="micro")}
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics)


def update_metrics(metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Update metrics with logits `[B, K]` and the labels of a batch, `[B]` or `[B, K]`."""
    if labels.ndim == 1:
        metrics.update(logits, labels)
    else:
        # Values in (0, 1), 0.5 for a logit of 0: torchmetrics would take the sigmoid of some batches only, those with
        # values outside [0, 1]; and a sigmoid rounds large logits to equal values.
        metrics.update(0.5 + 0.5 * F.softsign(logits), labels.long())


def percentages(metrics: MetricCollection) -> dict[str, float]:
    """Return the values of `accuracy_metrics` in percent, the main one first."""
    values = {name: 100 * value.item() for name, value in metrics.compute().items()}
    main = main_metric(values)
    return {main: values.pop(main)} | values


@torch.no_grad()  # not inference mode: a sharded model keeps tensors of its first forward, which training needs
def measure_accuracy(
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    num_classes: int,
    compute: Compute,
    corrupt: CorruptImages,
    multi_label: bool = False,
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
        multi_label: Whether an image may have several classes.
        blank: `[1, 3, h, w]`, run in place of a batch without images when all processes must run equally many batches.
        further: Counts of each class, which are updated with every batch.

    Raises:
        UserError: If there are more unreadable images than `corrupt` allows.
    """
    device = compute.device
    metrics = accuracy_metrics(num_classes, multi_label=multi_label).to(device)
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
        update_metrics(metrics, answers, labels)
        if further is not None:
            further.update(answers, labels)
        images += len(batch.images)
    return Accuracy(percentages(metrics) if images else dict.fromkeys(map(str, metrics), 0.0), images)
