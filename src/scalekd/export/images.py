"""The images that an export is checked and calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalekd.data import CorruptImages, Key, ReplayDataset, Split, evaluation_loader, evaluation_transform
from scalekd.data.loader import collate
from scalekd.errors import UserError
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.evaluation.progress import watched
from scalekd.export.compare import Run
from scalekd.hardware import autocast

_BATCH = 16


class Images:
    """The images of a split as a model is evaluated on them.

    Args:
        split: The images.
        resolution: Image side in pixels.
        crop_fraction: Share of the resized image that is looked at.
    """

    def __init__(self, split: Split, resolution: int, crop_fraction: float) -> None:
        self.split = split
        self._dataset = ReplayDataset(split, evaluation_transform(resolution, crop_fraction))

    def sample(self, count: int) -> Iterator[Tensor]:
        """Batches of `count` images, spread evenly over the split; unreadable ones are left out.

        Raises:
            UserError: If none can be read.
        """
        step = max(len(self.split) / count, 1)
        keys = [Key(0, int(number * step)) for number in range(min(count, len(self.split)))]
        read = 0
        for batch in DataLoader(self._dataset, batch_size=_BATCH, sampler=keys, collate_fn=collate):
            if len(batch.images):
                read += len(batch.images)
                yield batch.images
        if not read:
            raise UserError(f"data: none of {len(keys)} images of {self.split.root} can be read")

    def accuracy(self, run: Run, what: str, *, workers: int, max_corrupt: int) -> Accuracy:
        """Accuracy over all images, behind a progress bar titled `what`."""
        cpu = torch.device("cpu")
        return measure_accuracy(
            run,
            watched(evaluation_loader(self._dataset, _BATCH, workers), what),
            num_classes=len(self.split.classes),
            device=cpu,
            autocast=partial(autocast, cpu, torch.float32),
            corrupt=CorruptImages(max_corrupt),
        )
