"""Loads batches for segmentation. A training sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from scalekd.data import EvaluationOrder, Key, TrainingStream, seeded
from scalekd.data.decoding import open_image, read
from scalekd.data.loader import restarting_loader
from scalekd.data.outages import DataGoneError, OutageRetry
from scalekd.data.worker_restarts import RestartingLoader
from scalekd.engine.processes import Processes
from scalekd.errors import UserError
from scalekd.tasks.segmentation.files import Pairs
from scalekd.tasks.segmentation.schema import IGNORED, Segmentation
from scalekd.tasks.segmentation.values import Coding
from scalekd.tasks.transfer.readable import first_readable

_MEAN = [round(255 * share) for share in IMAGENET_DEFAULT_MEAN]

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SegmentationBatch(NamedTuple):
    """A batch.

    Attributes:
        images: `[B, 3, h, w]`, uint8.
        labels: Class indices `[B, h', w']`, uint8; 255 for pixels without a label.
        corrupt: Reasons by path of the files that could not be read.
        wrong: Error message if a label image has wrong content; the main process raises it.
    """

    images: Tensor
    labels: Tensor
    corrupt: dict[str, str]
    wrong: str = ""

    def refuse_wrong(self) -> None:
        """Raise the error that a worker process found in a label image, if any."""
        if self.wrong:
            raise UserError(self.wrong)


class LabelledImages(Dataset[SegmentationBatch]):
    """Dataset of a split's images with their labels, as batches of one.

    Args:
        pairs: The files.
        recipe: The run's settings.
        transform: Maps an image `[3, h, w]` and labels `[h, w]`, both uint8, to those of the sample. It is called with
            a seed that depends on run, epoch and image.
        substitute: Whether an unreadable image is replaced by the next one (training) or left out (evaluation).
    """

    def __init__(self, pairs: Pairs, recipe: Segmentation, transform: Transform, *, substitute: bool = False) -> None:
        self.pairs, self.transform, self.substitute, self.seed = pairs, transform, substitute, recipe.seed
        self._max_pixels, self._patience = recipe.max_pixels, OutageRetry(recipe.data_patience)
        self._coding = Coding(recipe)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> SegmentationBatch:
        try:
            found, reasons = first_readable(self._read, key.image, len(self), substitute=self.substitute)
        except DataGoneError:
            raise
        except UserError as error:  # wrong content of a label image; the main process raises it
            return SegmentationBatch(torch.empty(0), torch.empty(0), {}, str(error))
        corrupt = {str(self.pairs.images[i]): f"or {self.pairs.labels[i]}: {reason}" for i, reason in reasons.items()}
        if found is None:
            return SegmentationBatch(torch.empty(0), torch.empty(0), corrupt)
        index, (pixels, numbers) = found
        with seeded(self.seed, key.epoch, index):
            pixels, numbers = self.transform(pixels, numbers)
        return SegmentationBatch(pixels[None], numbers[None], corrupt)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return self._patience.read(self.pairs.root, partial(self._decode, index))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode an image `[3, h, w]` and its labels `[h, w]`."""
        with open_image(partial(str, self.pairs.images[index]), self._max_pixels) as opened:
            pixels = read(opened)
        return pixels, torch.from_numpy(self._coding.read(self.pairs.labels[index]))


def training_transform(recipe: Segmentation) -> Transform:
    """Build the augmentation of mmsegmentation for ADE20K: random scale, crop, flip and photometric distortion."""
    low, high = (round(recipe.short_side * scale) for scale in recipe.scale_range)
    steps = v2.Compose(
        [
            v2.RandomShortestSize(list(range(low, high + 1)), round(recipe.long_side * recipe.scale_range[1])),
            partial(_fill_up, recipe.crop),
            partial(_crop, v2.RandomCrop(recipe.crop), recipe.max_class_share),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandomPhotometricDistort(p=recipe.photometric),
        ]
    )
    return partial(_apply, steps)


def testing_transform(recipe: Segmentation) -> Transform:
    """Build the transform for testing: it resizes the image, but not the labels, which are measured at full size."""
    resize = v2.Resize(recipe.short_side, max_size=recipe.long_side)
    return partial(_apply, lambda image, label: (resize(image), label))


def _apply(transform: Callable[..., Any], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    image, label = transform(tv_tensors.Image(image), tv_tensors.Mask(label))
    return image.as_subclass(Tensor), label.as_subclass(Tensor)


def _fill_up(side: int, image: Tensor, label: Tensor) -> Any:
    """Pad an image that is smaller than a crop at the right and bottom with ImageNet's mean colour, unlabelled."""
    height, width = image.shape[-2:]
    missing = [0, 0, max(side - width, 0), max(side - height, 0)]
    return F.pad(image, missing, fill=_MEAN), F.pad(label, missing, fill=IGNORED)


def _crop(crop: v2.RandomCrop, share: float, image: Tensor, label: Tensor) -> Any:
    """Crop at random; a crop in which one class has more than `share` of the pixels is drawn again, up to ten times."""
    for _ in range(10):
        part = crop(image, label)
        counts = torch.bincount(part[1].flatten(), minlength=IGNORED + 1)[:IGNORED]
        if counts.max() <= share * counts.sum() and counts.any():
            break
    return part


def noise(recipe: Segmentation) -> SegmentationBatch:
    """Return two images of noise of the crop's size, with a class for each pixel."""
    shape, generator = (2, 3, recipe.crop, recipe.crop), torch.Generator().manual_seed(recipe.seed)  # UPerNet needs two
    images = torch.randint(0, IGNORED, shape, dtype=torch.uint8, generator=generator)
    return SegmentationBatch(images, images[:, 0] % len(recipe.class_names), {})


def training_loader(
    pairs: Pairs, recipe: Segmentation, report: Callable[[str], object], processes: Processes, *, start: int = 0
) -> RestartingLoader[SegmentationBatch, Key]:
    """Return the loader of this process's micro-batches in training.

    Args:
        pairs: The training files.
        recipe: The run's settings.
        report: Called with a line when dead workers are replaced.
        processes: The processes that share a batch.
        start: Number of micro-batches to skip at the beginning, to resume a run.
    """
    epochs = -(-recipe.steps // (len(pairs) // recipe.batch))
    stream = TrainingStream(
        size=len(pairs),
        batch=recipe.batch,
        epochs=epochs,
        seed=recipe.seed,
        accumulate=recipe.accumulate(processes.count),
        rank=processes.rank,
        count=processes.count,
        start=start,
    )
    dataset = LabelledImages(pairs, recipe, training_transform(recipe), substitute=True)
    return restarting_loader(dataset, stream, _join, recipe.workers, report)


def testing_loader(
    pairs: Pairs, recipe: Segmentation, report: Callable[[str], object], processes: Processes
) -> RestartingLoader[SegmentationBatch, Key]:
    """Return the loader that reads every image of a split once, in order, in batches of one because sizes differ.

    See `training_loader` for the arguments.
    """
    dataset = LabelledImages(pairs, recipe, testing_transform(recipe))
    order = EvaluationOrder(len(pairs), 1, processes.rank, processes.count)
    return restarting_loader(dataset, order, _join, recipe.workers, report)


def _join(samples: list[SegmentationBatch]) -> SegmentationBatch:
    """Join the readable samples into a batch; it is empty if a label image is wrong."""
    corrupt = {path: reason for sample in samples for path, reason in sample.corrupt.items()}
    wrong = next((sample.wrong for sample in samples if sample.wrong), "")
    good = [(sample.images[0], sample.labels[0]) for sample in samples if sample.images.numel()]
    images, labels = default_collate(good) if good and not wrong else (torch.empty(0), torch.empty(0))
    return SegmentationBatch(images, labels, corrupt, wrong)
