"""Figures of a detector on a split, and pictures of what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.data.decoding import UnreadableImageError
from scalekd.engine.processes import Processes
from scalekd.hardware import Compute
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.data import DetectionBatch, read_picture
from scalekd.tasks.detection.evaluation import AveragePrecision, as_results, average_precision
from scalekd.tasks.detection.pictures import write_comparison
from scalekd.tasks.detection.schema import Detection


class Tally:
    """Collects what is found in a split's images, batch by batch.

    Args:
        val: The split.
        masks: Whether masks are measured, too.

    Attributes:
        seen: Ids of the images that were looked at; no others count.
    """

    def __init__(self, val: CocoSplit, *, masks: bool) -> None:
        self.seen: list[int] = []
        self._val, self._masks = val, masks
        self._results: list[dict[str, Any]] = []

    def add(self, detector: nn.Module, batch: DetectionBatch) -> None:
        """Look at a batch, which may be empty, on the detector's device."""
        if not batch.images:
            return
        numbers = [self._val.pictures[index].number for index in batch.numbers]
        self._results += as_results(detector(scaled(batch.images)), numbers)
        self.seen += numbers

    def share(self, processes: Processes) -> None:
        """Put together what all processes have found; called by all at once."""
        self._results = [result for results in processes.gather(self._results) for result in results]
        self.seen = [number for numbers in processes.gather(self.seen) for number in numbers]

    def figures(self) -> dict[str, AveragePrecision]:
        """Of `boxes`, and of `masks` where the detector finds them."""
        figures = {"boxes": average_precision(self._val.box_truth, self._results, "bbox", self.seen)}
        if self._masks:
            figures["masks"] = average_precision(self._val.mask_truth, self._results, "segm", self.seen)
        return figures


def scaled(images: list[Tensor]) -> list[Tensor]:
    """uint8 -> float32 in [0, 1]."""
    return [image.float() / 255 for image in images]


@torch.inference_mode()
def draw(detector: nn.Module, val: CocoSplit, recipe: Detection, folder: Path, *, compute: Compute) -> None:
    """Write pictures of a split's first images, as many as the recipe wants: annotations beside what is found.

    Args:
        detector: In eval mode.
        val: The split.
        recipe: How many, and how large images may be.
        folder: Where to; made if it is not there.
        compute: Where the detector is, and what it runs in.
    """
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(val.pictures[: recipe.pictures]):
        try:
            image = read_picture(picture, recipe.max_pixels)
        except UnreadableImageError:  # counted in the validation
            continue
        with compute.autocast():
            (found,) = detector(scaled([image.to(compute.device)]))
        write_comparison(folder / f"{number:03}-{picture.path.stem}.png", image, picture, found, val.classes)
