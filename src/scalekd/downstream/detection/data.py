"""From COCO pictures to batches. A sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import random
import signal
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as F

from scalekd.data import Key, seeded
from scalekd.data.decoding import UnreadableImageError, open_image, read
from scalekd.data.loader import EvaluationOrder
from scalekd.downstream.detection.coco import CocoSplit, Picture

Target = dict[str, Tensor]


class Example(NamedTuple):
    """An image `[3, h, w]`, uint8, with its target; which picture of the split it is; unreadable files met."""

    image: Tensor | None
    target: Target
    number: int
    corrupt: tuple[str, ...]


class DetectionBatch(NamedTuple):
    """Images of different sizes `[3, h, w]`, uint8, and what is known of each; see `Example`."""

    images: list[Tensor]
    targets: list[Target]
    numbers: list[int]
    corrupt: tuple[str, ...]


class CocoDataset(Dataset[Example]):
    """Pictures of a split, flipped at random.

    Args:
        split: The pictures.
        seed: Seed of the run.
        flip: Probability of a horizontal flip.
        learning: Whether targets are wanted, and an unreadable image is replaced by the next one. Otherwise it is
            left out.
    """

    def __init__(self, split: CocoSplit, *, seed: int = 0, flip: float = 0.0, learning: bool = False) -> None:
        self.split, self.seed, self.flip, self.learning = split, seed, flip, learning

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Example:
        corrupt: list[str] = []
        for offset in range(len(self) if self.learning else 1):
            index = (key.image + offset) % len(self)
            picture = self.split.pictures[index]
            try:
                image = read_picture(picture)
            except UnreadableImageError as error:
                corrupt.append(f"{picture.path} ({error})")
                continue
            target = picture.target() if self.learning else {}
            with seeded(self.seed, key.epoch, index):
                if random.random() < self.flip:
                    image, target = flipped(image, target)
            return Example(image, target, index, tuple(corrupt))
        return Example(None, {}, -1, tuple(corrupt))


def read_picture(picture: Picture) -> Tensor:
    """The pixels of a picture, `[3, h, w]`, uint8.

    Raises:
        UnreadableImageError: If its file is spoilt, or of another size than the annotations say.
    """
    with open_image(partial(str, picture.path)) as image:
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
    return mirrored, target | {"boxes": boxes, "masks": target["masks"].flip(-1)}


def collate(examples: list[Example]) -> DetectionBatch:
    """Gather the examples that could be read; images keep their sizes."""
    good = [(e.image, e.target, e.number) for e in examples if e.image is not None]
    corrupt = tuple(path for e in examples for path in e.corrupt)
    return DetectionBatch([i for i, _, _ in good], [t for _, t, _ in good], [n for _, _, n in good], corrupt)


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_batches(dataset: CocoDataset, stream: Sampler[list[Key]], workers: int) -> DataLoader[Any]:
    """Batches of a training run, in the stream's order."""
    return _loader(dataset, workers, batch_sampler=stream, persistent_workers=workers > 0)


def evaluation_batches(dataset: CocoDataset, batch: int, workers: int) -> DataLoader[Any]:
    """Every picture of a split once, in order."""
    return _loader(dataset, workers, batch_size=batch, sampler=EvaluationOrder(len(dataset)))


def _loader(dataset: CocoDataset, workers: int, **order: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        **order,
    )
