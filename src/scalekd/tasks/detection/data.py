"""From COCO pictures to batches. A sample is a pure function of (seed, epoch, index)."""

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
from scalekd.data.loader import steady_loader
from scalekd.data.patience import Patience
from scalekd.data.steady import SteadyLoader
from scalekd.engine.processes import Processes
from scalekd.tasks.detection.coco import CocoSplit, Picture
from scalekd.tasks.detection.schema import Detection

Target = dict[str, Tensor]


class Example(NamedTuple):
    """An image `[3, h, w]`, uint8, with its target; which picture of the split it is; unreadable files met."""

    image: Tensor | None
    target: Target
    number: int
    corrupt: dict[str, str]


class DetectionBatch(NamedTuple):
    """Images of different sizes `[3, h, w]`, uint8, and what is known of each; see `Example`."""

    images: list[Tensor]
    targets: list[Target]
    numbers: list[int]
    corrupt: dict[str, str]


class CocoDataset(Dataset[Example]):
    """Pictures of a split, flipped at random.

    Args:
        split: The pictures.
        seed: Seed of the run.
        flip: Probability of a horizontal flip.
        learning: Whether targets are wanted, and an unreadable image is replaced by the next one. Otherwise it is
            left out.
        masks: Whether targets have masks.
        max_pixels: Larger images count as unreadable.
        patience: Seconds to wait for data that is gone.
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
        self._max_pixels, self._patience = max_pixels, Patience(patience)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Example:
        corrupt: dict[str, str] = {}
        for offset in range(len(self) if self.learning else 1):
            index = (key.image + offset) % len(self)
            picture = self.split.pictures[index]
            try:
                reading = partial(read_picture, picture, self._max_pixels)
                image = self._patience.read(picture.path.parent, reading)
            except UnreadableImageError as error:
                corrupt[str(picture.path)] = str(error)
                continue
            target = picture.target(masks=self.masks) if self.learning else {}
            with seeded(self.seed, key.epoch, index):
                if random.random() < self.flip:
                    image, target = flipped(image, target)
            return Example(image, target, index, corrupt)
        return Example(None, {}, -1, corrupt)


def read_picture(picture: Picture, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The pixels of a picture, `[3, h, w]`, uint8.

    Raises:
        UnreadableImageError: If its file is corrupt, or of another size than the annotations say.
    """
    with open_image(partial(str, picture.path), max_pixels) as image:
        if image.size != (picture.width, picture.height):
            stated = f"{picture.width}x{picture.height}"
            raise UnreadableImageError(f"it is {image.width}x{image.height}, the annotations say {stated}")
        return read(image)


def flipped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left becomes right, in the image, its boxes and its masks."""
    mirrored: Tensor = F.horizontal_flip(image)
    if not target:
        return mirrored, target
    left, upper, right, lower = target["boxes"].unbind(1)
    width = image.shape[-1]
    boxes = torch.stack([width - right, upper, width - left, lower], dim=1)
    masks = {"masks": target["masks"].flip(-1)} if "masks" in target else {}
    return mirrored, target | {"boxes": boxes} | masks


def collate(examples: list[Example]) -> DetectionBatch:
    """Gather the examples that could be read; images keep their sizes."""
    good = [(e.image, e.target, e.number) for e in examples if e.image is not None]
    corrupt = {path: reason for e in examples for path, reason in e.corrupt.items()}
    return DetectionBatch([i for i, _, _ in good], [t for _, t, _ in good], [n for _, _, n in good], corrupt)


def training_batches(
    split: CocoSplit,
    recipe: Detection,
    report: Callable[[str], object],
    processes: Processes,
    *,
    masks: bool = True,
    start: int = 0,
) -> SteadyLoader[DetectionBatch, Key]:
    """Micro-batches of this process in a training run, from the `start`-th on.

    Args:
        split: The images.
        recipe: The run's settings.
        report: Called with a line when workers that died are replaced.
        processes: Those that share a batch.
        masks: Whether targets have masks.
        start: Micro-batches to leave out at the beginning.
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
    return steady_loader(dataset, stream, collate, recipe.workers, report)


def evaluation_batches(
    split: CocoSplit, recipe: Detection, report: Callable[[str], object], processes: Processes
) -> SteadyLoader[DetectionBatch, Key]:
    """Every picture of a split once, in order, each in one of the processes; see `training_batches`."""
    dataset = CocoDataset(split, max_pixels=recipe.max_pixels, patience=recipe.data_patience)
    at_once = recipe.micro_batch or recipe.batch
    order = EvaluationOrder(len(split), at_once, processes.rank, processes.count)
    return steady_loader(dataset, order, collate, recipe.workers, report)
