"""Images for checking and calibrating an export."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalekd.data import CorruptImages, Key, ReplayDataset, evaluation_loader
from scalekd.data.loader import collate
from scalekd.errors import UserError
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.exports.compare import Forward
from scalekd.hardware import Compute
from scalekd.progress import watched

_BATCH = 16


class Images:
    """The images of a split under a model's evaluation transform.

    Args:
        dataset: The images, with the evaluation transform.
    """

    def __init__(self, dataset: ReplayDataset) -> None:
        self.split = dataset.split
        self._dataset = dataset

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yield batches with `count` images in total, spread evenly over the split; unreadable ones are skipped.

        Raises:
            UserError: If no image can be read.
        """
        keys = self._keys(count)
        batches = [keys[first : first + _BATCH] for first in range(0, len(keys), _BATCH)]
        read = 0
        for batch in DataLoader(self._dataset, batch_sampler=batches, collate_fn=collate):
            if len(batch.images):
                read += len(batch.images)
                yield batch.images
        if not read:
            raise UserError(f"data: none of {len(keys)} images of {self.split.root} can be read")

    def pairs(self, count: int, whole: ReplayDataset) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the index of up to `count` images, each as the model takes it, and as it is decoded.

        They are `[1, 3, side, side]` in [0, 1], and `[1, 3, h, w]` in uint8.

        Args:
            count: Number of images, spread evenly over the split; unreadable ones are skipped.
            whole: The same split, not resized.
        """
        for key in self._keys(count):
            small, large = self._dataset[key].image, whole[key].image
            if small is not None and large is not None:
                yield key.image, small[None], large[None]

    def _keys(self, count: int) -> list[Key]:
        """Return the keys of up to `count` images, spread evenly over the split."""
        step = max(len(self.split) / count, 1)
        return [Key(0, int(number * step)) for number in range(min(count, len(self.split)))]

    def accuracy(self, forward: Forward, what: str, *, workers: int, corrupt: CorruptImages) -> Accuracy:
        """Measure the accuracy on all images, with a progress bar titled `what`."""
        return measure_accuracy(
            forward,
            watched(evaluation_loader(self._dataset, _BATCH, workers), what),
            num_classes=len(self.split.classes),
            compute=Compute(torch.device("cpu"), torch.float32),
            corrupt=corrupt,
            multi_label=self.split.sets is not None,
        )
