"""Measures a detector on a split and draws its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.data.decoding import UnreadableImageError
from scalekd.engine.processes import Processes
from scalekd.hardware import Compute
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.data import DetectionBatch, read_annotated
from scalekd.tasks.detection.evaluation import AveragePrecision, as_results, average_precision
from scalekd.tasks.detection.pictures import write_comparison
from scalekd.tasks.detection.schema import Detection


class Tally:
    """Collects a detector's predictions on a split, batch by batch.

    Args:
        val: The split.
        masks: Whether to measure masks in addition to boxes.

    Attributes:
        seen: COCO ids of the evaluated images; only these count.
    """

    def __init__(self, val: CocoSplit, *, masks: bool) -> None:
        self.seen: list[int] = []
        self._val, self._masks = val, masks
        self._results: list[dict[str, Any]] = []

    def add(self, detector: nn.Module, batch: DetectionBatch) -> None:
        """Run the detector on a batch on its device and collect the predictions; the batch may be empty."""
        if not batch.images:
            return
        ids = [self._val.images[index].coco_id for index in batch.indices]
        self._results += as_results(detector(scaled(batch.images)), ids)
        self.seen += ids

    def share(self, processes: Processes) -> None:
        """Gather the predictions of all processes; every process must call it."""
        self._results = [result for results in processes.gather(self._results) for result in results]
        self.seen = [one for ids in processes.gather(self.seen) for one in ids]

    def figures(self) -> dict[str, AveragePrecision]:
        """Compute the figures of `boxes`, and of `masks` if they are measured."""
        figures = {"boxes": average_precision(self._val.box_truth, self._results, "bbox", self.seen)}
        if self._masks:
            figures["masks"] = average_precision(self._val.mask_truth, self._results, "segm", self.seen)
        return figures


def scaled(images: list[Tensor]) -> list[Tensor]:
    """Convert uint8 images to float32 in [0, 1]."""
    return [image.float() / 255 for image in images]


@torch.inference_mode()
def draw(detector: nn.Module, val: CocoSplit, recipe: Detection, folder: Path, *, compute: Compute) -> None:
    """Write pictures of a split's first images, each with its annotations next to its predictions.

    Args:
        detector: The detector, in eval mode.
        val: The split.
        recipe: The run's settings: `pictures` is the number of images.
        folder: Folder to write to; created if it does not exist.
        compute: The detector's device, and the number format in which it runs.
    """
    folder.mkdir(exist_ok=True)
    for index, annotated in enumerate(val.images[: recipe.pictures]):
        try:
            image = read_annotated(annotated, recipe.max_pixels)
        except UnreadableImageError:  # already counted in the validation
            continue
        with compute.autocast():
            (found,) = detector(scaled([image.to(compute.device)]))
        write_comparison(folder / f"{index:03}-{annotated.path.stem}.png", image, annotated, found, val.classes)
