"""Load batches from a split. A sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from scalekd.data.augmentation import Transform
from scalekd.data.decoding import MAX_PIXELS, UnreadableImageError
from scalekd.data.outages import OutageRetry
from scalekd.data.randomness import derive_seed, seeded
from scalekd.data.split import Split
from scalekd.data.worker_restarts import RestartingLoader
from scalekd.methods.outputs import TeacherOutputs
from scalekd.methods.share import FeatureShare

ALL = FeatureShare(1.0)


class Key(NamedTuple):
    """Identifies a sample: the epoch (or the one whose augmentation it repeats) and the image's index in the split."""

    epoch: int
    image: int


class Batch(NamedTuple):
    """Images `[B, 3, h, w]` in [0, 1], labels, unreadable files, and the teacher's outputs if they are cached.

    Labels are `[B]` or, with several per image, `[B, K]` (see `Split.target`). Unreadable files are given by path, each
    with the reason or an empty string.
    """

    images: Tensor
    labels: Tensor
    corrupt: dict[str, str]
    teacher_outputs: TeacherOutputs | None = None


class CachedOutputs(NamedTuple):
    """The teacher's outputs for one image: tokens `[N, D]` if its features are compared, logits `[K]` if it has any."""

    tokens: Tensor | None
    logits: Tensor | None


class Sample(NamedTuple):
    """One image and its label, the unreadable files that were met, and the teacher's outputs if they are cached.

    The image is `[3, h, w]` in [0, 1], or None if its file could not be read. For the label see `Split.target`.
    """

    image: Tensor | None
    label: int | NDArray[np.float32]
    corrupt: dict[str, str]
    teacher_outputs: CachedOutputs | None = None


class ReplayDataset(Dataset[Sample]):
    """Images of a split under a transform that is seeded for each sample.

    Args:
        split: The images.
        transform: Maps an opened image, not decoded yet, to a tensor.
        seed: Seed of the run.
        substitute: Whether an unreadable image is replaced by the next one (training, where batches keep their
            size) or left out (evaluation).
        cached_outputs: Gives the teacher's outputs for a key, without a batch axis, where they are kept.
        share: The images whose features are compared; such an image is replaced by another one of them.
        max_pixels: Larger images count as unreadable.
        patience: Seconds to wait for data that has become unavailable.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        seed: int = 0,
        substitute: bool = False,
        cached_outputs: Callable[[Key], CachedOutputs] | None = None,
        share: FeatureShare = ALL,
        max_pixels: int = MAX_PIXELS,
        patience: float = 0,
    ) -> None:
        self.split, self.transform, self.seed, self.substitute = split, transform, seed, substitute
        self.share = share
        self.cached_outputs, self.max_pixels, self.patience = cached_outputs, max_pixels, OutageRetry(patience)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Sample:
        corrupt: dict[str, str] = {}
        for offset in range(len(self.split) if self.substitute else 1):
            index = (key.image + offset) % len(self.split)
            if self.share.chosen(key.image, key.epoch) and not self.share.chosen(index, key.epoch):
                continue
            try:
                pixels = self.patience.read(self.split.root, partial(self._read, key.epoch, index))
            except UnreadableImageError as error:
                corrupt[self.split.locate(index)] = error.reason
                continue
            seen = Key(key.epoch, index)
            outputs = None if self.cached_outputs is None else self.cached_outputs(seen)
            return Sample(pixels, self.split.target(index), corrupt, outputs)
        return Sample(None, -1, corrupt)

    def _read(self, epoch: int, index: int) -> Tensor:
        with self.split.open(index, self.max_pixels) as image, seeded(self.seed, epoch, index):
            return self.transform(image)


def leave_stopping_to_the_main_process(_worker: int) -> None:
    """Ignore SIGINT and SIGHUP, which a terminal sends to all processes, so that only the main process handles them."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def collate(samples: list[Sample]) -> Batch:
    """Stack the readable samples into a batch."""
    good = [(s.image, s.label) for s in samples if s.image is not None]
    # In a worker, default_collate stacks directly into memory shared with the main process.
    images, labels = default_collate(good) if good else (torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long))
    outputs = [s.teacher_outputs for s in samples if s.teacher_outputs is not None]
    corrupt = {path: reason for s in samples for path, reason in s.corrupt.items()}
    return Batch(images, labels, corrupt, _stack(outputs) if outputs else None)


def _stack(outputs: list[CachedOutputs]) -> TeacherOutputs:
    """Stack the outputs of single images into those of a batch; the images that have tokens come first."""
    tokens = [o.tokens for o in takewhile(lambda o: o.tokens is not None, outputs)]
    logits = [o.logits for o in outputs if o.logits is not None]
    return TeacherOutputs(
        default_collate(tokens) if tokens else torch.empty(0, 0, 0), default_collate(logits) if logits else None
    )


class TrainingStream(Sampler[list[Key]]):
    """All batches of a run as one stream, so that a run can be resumed at any of them.

    Each epoch is a permutation drawn from (seed, epoch); images that do not fill a last batch are left out. A global
    batch is cut into `accumulate * count` micro-batches, so that its content does not depend on the micro-batch size or
    on the number of processes: of every `count` consecutive micro-batches, each process gets one.

    If features are compared on a share of the images only, each micro-batch begins with its share of them. Both the
    chosen images and the others keep the order of the permutation.

    Args:
        size: Number of images in the split.
        batch: Global batch size.
        epochs: Passes over the split.
        seed: Seed of the run.
        accumulate: Micro-batches per step and process.
        rank: Index of this process.
        count: Number of processes that share the batch.
        start: Micro-batches of this process to skip at the beginning.
        views: Number of epochs after which the augmentations repeat; by default they never do. The order never repeats.
        share: The images whose features are compared.
    """

    def __init__(
        self,
        *,
        size: int,
        batch: int,
        epochs: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        count: int = 1,
        start: int = 0,
        views: int | None = None,
        share: FeatureShare = ALL,
    ) -> None:
        self.share = share
        self.size, self.batch, self.epochs, self.seed = size, batch, epochs, seed
        self.start, self.views = start, views or epochs
        self.rank, self.count = rank, count
        self.micro_batch = batch // (accumulate * count)
        self.batches_per_epoch = size // batch * accumulate

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[Key]]:
        order = torch.empty(0, dtype=torch.int64)
        for number in range(self.start, len(self)):
            epoch, position = divmod(number, self.batches_per_epoch)
            if position == 0 or not len(order):
                generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch) % 2**63)
                order = self._chosen_first(torch.randperm(self.size, generator=generator), epoch % self.views)
            first = (position * self.count + self.rank) * self.micro_batch
            yield [Key(epoch % self.views, index) for index in order[first : first + self.micro_batch].tolist()]

    def _chosen_first(self, order: Tensor, view: int) -> Tensor:
        """Return the order in which each micro-batch begins with its share of the chosen images."""
        chosen_at_once = self.share.count(self.micro_batch)
        if chosen_at_once == self.micro_batch:
            return order
        micro_batches = self.batches_per_epoch * self.count
        is_chosen = self.share.chosen(order, view)
        first = order[is_chosen][: micro_batches * chosen_at_once]
        # Chosen images for which there is no place at the beginning of a micro-batch are treated as the others.
        is_chosen &= is_chosen.cumsum(0) <= len(first)
        others = order[~is_chosen][: micro_batches * (self.micro_batch - chosen_at_once)]
        return torch.cat([first.view(micro_batches, -1), others.view(micro_batches, -1)], 1).flatten()


class EvaluationOrder(Sampler[list[Key]]):
    """Every image once, in order, in batches; with several processes, each gets every `count`-th batch.

    The batches are therefore the same as with one process, and so is the rounding. All processes have the same number
    of batches, of which the last may be empty: with sharded weights, all processes take part in each forward pass.
    """

    def __init__(self, size: int, batch: int, rank: int = 0, count: int = 1) -> None:
        self.batch, self.rank, self.count, self._images = batch, rank, count, range(size)
        self._length = math.ceil(size / (batch * count))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Key]]:
        for number in range(self.rank, self._length * self.count, self.count):
            first = number * self.batch
            yield [Key(0, index) for index in self._images[first : first + self.batch]]


def restarting_loader(
    dataset: Dataset[Any],
    order: Sampler[list[Key]],
    gather: Callable[[list[Any]], Any],
    workers: int,
    report: Callable[[str], object] | None = None,
) -> RestartingLoader[Any, Key]:
    """Load batches of any dataset in a given order, replacing workers that die.

    Args:
        dataset: Returns a sample for a key.
        order: The keys of each batch.
        gather: Collates samples into a batch.
        workers: Processes that load samples.
        report: Called with a line when workers that died are replaced.
    """

    def load(batches: Iterable[list[Key]]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=leave_stopping_to_the_main_process,
            collate_fn=gather,
            pin_memory=torch.cuda.is_available(),
        )

    return RestartingLoader(order, load, report)


def training_loader(
    dataset: ReplayDataset,
    stream: Sampler[list[Key]],
    workers: int,
    report: Callable[[str], object] | None = None,
) -> RestartingLoader[Batch, Key]:
    """Load the batches of a training run in the stream's order; see `restarting_loader`."""
    return restarting_loader(dataset, stream, collate, workers, report)


def evaluation_loader(
    dataset: ReplayDataset,
    batch: int,
    workers: int,
    report: Callable[[str], object] | None = None,
    *,
    rank: int = 0,
    count: int = 1,
) -> RestartingLoader[Batch, Key]:
    """Load every image of a split once, in order; see `EvaluationOrder` for several processes."""
    return training_loader(dataset, EvaluationOrder(len(dataset), batch, rank, count), workers, report)
