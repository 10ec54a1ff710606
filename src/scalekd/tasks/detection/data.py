"""Loads batches for detection. A sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from scalekd.data import EvaluationOrder, Key, TrainingStream, seeded
from scalekd.data.decoding import MAX_PIXELS, UnreadableImageError, open_image, read
from scalekd.data.loader import restarting_loader
from scalekd.data.outages import OutageRetry
from scalekd.data.worker_restarts import RestartingLoader
from scalekd.engine.processes import Processes
from scalekd.tasks.detection.coco import AnnotatedImage, CocoSplit
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.readable import first_readable

Target = dict[str, Tensor]


class Example(NamedTuple):
    """One sample.

    Attributes:
        image: `[3, h, w]`, uint8; None if it could not be read.
        target: Its training target; empty in evaluation.
        image_index: Index of the image in the split.
        corrupt: Reasons by path of the files that could not be read.
    """

    image: Tensor | None
    target: Target
    image_index: int
    corrupt: dict[str, str]


class DetectionBatch(NamedTuple):
    """A batch of images `[3, h, w]`, uint8, of different sizes; see `Example` for the other attributes."""

    images: list[Tensor]
    targets: list[Target]
    indices: list[int]
    corrupt: dict[str, str]


class CocoDataset(Dataset[Example]):
    """Dataset of a split's images with random horizontal flips.

    Args:
        split: The split.
        seed: Seed of the run.
        flip: Probability of a horizontal flip.
        learning: True for training: samples have targets, and an unreadable image is replaced by the next one. False
            for evaluation: no targets, unreadable images are left out.
        masks: Whether targets have masks.
        max_pixels: Images with more pixels count as unreadable.
        patience: Seconds to wait if the data's folder is gone.
    """

    def __init__(
        self,
        split: CocoSplit,
        *,
        seed: int = 0,
        flip: float = 0.0,
        learning: bool = False,
        masks: bool = True,
        max_pixels: int = MAX_PIXELS,
        patience: float = 0,
    ) -> None:
        self.split, self.seed, self.flip, self.learning, self.masks = split, seed, flip, learning, masks
        self._max_pixels, self._patience = max_pixels, OutageRetry(patience)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Example:
        found, reasons = first_readable(self._read, key.image, len(self), substitute=self.learning)
        corrupt = {str(self.split.images[index].path): reason for index, reason in reasons.items()}
        if found is None:
            return Example(None, {}, -1, corrupt)
        index, image = found
        target = self.split.images[index].target(masks=self.masks) if self.learning else {}
        with seeded(self.seed, key.epoch, index):
            if random.random() < self.flip:
                image, target = flipped(image, target)
        return Example(image, target, index, corrupt)

    def _read(self, index: int) -> Tensor:
        annotated = self.split.images[index]
        return self._patience.read(annotated.path.parent, partial(read_annotated, annotated, self._max_pixels))


def read_annotated(annotated: AnnotatedImage, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image as `[3, h, w]`, uint8.

    Raises:
        UnreadableImageError: If its file is corrupt, or its size differs from the annotations.
    """
    with open_image(partial(str, annotated.path), max_pixels) as image:
        if image.size != (annotated.width, annotated.height):
            stated = f"{annotated.width}x{annotated.height}"
            raise UnreadableImageError(f"it is {image.width}x{image.height}, the annotations say {stated}")
        return read(image)


def flipped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Flip an image with its boxes and masks horizontally."""
    mirrored: Tensor = F.horizontal_flip(image)
    if not target:
        return mirrored, target
    left, upper, right, lower = target["boxes"].unbind(1)
    width = image.shape[-1]
    boxes = torch.stack([width - right, upper, width - left, lower], dim=1)
    masks = {"masks": target["masks"].flip(-1)} if "masks" in target else {}
    return mirrored, target | {"boxes": boxes} | masks


def collate(examples: list[Example]) -> DetectionBatch:
    """Join the readable examples into a batch; images keep their sizes."""
    good = [(e.image, e.target, e.image_index) for e in examples if e.image is not None]
    corrupt = {path: reason for e in examples for path, reason in e.corrupt.items()}
    return DetectionBatch([i for i, _, _ in good], [t for _, t, _ in good], [n for _, _, n in good], corrupt)


def noise(recipe: Detection) -> DetectionBatch:
    """Return a batch of noise in the smallest size that a recipe trains on, with one object of label 1 per image."""
    side, count = min(recipe.sizes), min(recipe.micro_batch or recipe.batch, 2)  # batch norm needs two
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    target = {
        "boxes": torch.tensor([[0.0, 0.0, side / 2, side / 2]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "masked": torch.ones(1, dtype=torch.bool),
    }
    return DetectionBatch(list(images), [target] * count, list(range(count)), {})


def training_batches(
    split: CocoSplit,
    recipe: Detection,
    report: Callable[[str], object],
    processes: Processes,
    *,
    masks: bool = True,
    start: int = 0,
) -> RestartingLoader[DetectionBatch, Key]:
    """Return the loader of this process's micro-batches in training.

    Args:
        split: The training split.
        recipe: The run's settings.
        report: Called with a line when dead workers are replaced.
        processes: The processes that share a batch.
        masks: Whether targets have masks.
        start: Number of micro-batches to skip at the beginning, to resume a run.
    """
    stream = TrainingStream(
        size=len(split),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=recipe.accumulate(processes.count),
        rank=processes.rank,
        count=processes.count,
        start=start,
    )
    dataset = CocoDataset(
        split,
        seed=recipe.seed,
        flip=recipe.flip,
        learning=True,
        masks=masks,
        max_pixels=recipe.max_pixels,
        patience=recipe.data_patience,
    )
    return restarting_loader(dataset, stream, collate, recipe.workers, report)


def evaluation_batches(
    split: CocoSplit, recipe: Detection, report: Callable[[str], object], processes: Processes
) -> RestartingLoader[DetectionBatch, Key]:
    """Return the loader that reads every image of a split once, in order, divided among the processes.

    See `training_batches` for the arguments.
    """
    dataset = CocoDataset(split, max_pixels=recipe.max_pixels, patience=recipe.data_patience)
    at_once = recipe.micro_batch or recipe.batch
    order = EvaluationOrder(len(split), at_once, processes.rank, processes.count)
    return restarting_loader(dataset, order, collate, recipe.workers, report)
