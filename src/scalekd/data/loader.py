"""From a split to batches. A sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from scalekd.data.augmentation import Transform
from scalekd.data.decoding import UnreadableImageError
from scalekd.data.replay import derive_seed, seeded
from scalekd.data.split import Split
from scalekd.errors import UserError
from scalekd.method import TeacherOutputs


class Key(NamedTuple):
    """Which sample: the epoch (or the one whose augmentation it repeats), and the index of the image in the split."""

    epoch: int
    image: int


class Batch(NamedTuple):
    """Images `[B, 3, h, w]` in [0, 1], labels `[B]`, unreadable files, and the teacher's outputs where kept."""

    images: Tensor
    labels: Tensor
    corrupt: tuple[str, ...]
    taught: TeacherOutputs | None = None


class Sample(NamedTuple):
    """An image or, where its file could not be read, None; its label; unreadable files met; what the teacher says."""

    image: Tensor | None
    label: int
    corrupt: tuple[str, ...]
    taught: TeacherOutputs | None = None


class ReplayDataset(Dataset[Sample]):
    """Images of a split under a transform that is seeded for each sample.

    Args:
        split: The images.
        transform: Opened image, not decoded yet -> tensor.
        seed: Seed of the run.
        substitute: Whether an unreadable image is replaced by the next one (training, where batches keep their
            size) or left out (evaluation).
        taught: The teacher's outputs for a key, without a batch axis, where they are kept.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        seed: int = 0,
        substitute: bool = False,
        taught: Callable[[Key], TeacherOutputs] | None = None,
    ) -> None:
        self.split, self.transform, self.seed, self.substitute = split, transform, seed, substitute
        self.taught = taught

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Sample:
        corrupt: list[str] = []
        for offset in range(len(self.split) if self.substitute else 1):
            index = (key.image + offset) % len(self.split)
            try:
                with self.split.open(index) as image, seeded(self.seed, key.epoch, index):
                    pixels = self.transform(image)
            except UnreadableImageError:
                corrupt.append(self.split.locate(index))
                continue
            taught = None if self.taught is None else self.taught(Key(key.epoch, index))  # of the image that is seen
            return Sample(pixels, int(self.split.labels[index]), tuple(corrupt), taught)
        return Sample(None, -1, tuple(corrupt))


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: list[Sample]) -> Batch:
    """Stack the samples that could be read."""
    good = [(s.image, s.label) for s in samples if s.image is not None]
    # A worker stacks straight into the memory that it shares with the main process.
    images, labels = default_collate(good) if good else (torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long))
    taught = [s.taught for s in samples if s.taught is not None]
    return Batch(images, labels, tuple(path for s in samples for path in s.corrupt), _stack(taught) if taught else None)


def _stack(outputs: list[TeacherOutputs]) -> TeacherOutputs:
    """Outputs of single images as those of a batch."""
    logits = [o.logits for o in outputs if o.logits is not None]
    tokens: Tensor = default_collate([o.tokens for o in outputs])
    return TeacherOutputs(tokens, default_collate(logits) if logits else None)


class TrainingStream(Sampler[list[Key]]):
    """All batches of a run as one stream, so that a run can be taken up at any of them.

    Each epoch is a permutation drawn from (seed, epoch); what does not fill a last batch is left out. A global batch
    is cut into `accumulate * count` micro-batches, so that neither memory nor the number of processes changes what it
    holds: each process has one of every `count` that follow each other.

    Args:
        size: Images in the split.
        batch: Global batch.
        epochs: Passes over the split.
        seed: Seed of the run.
        accumulate: Micro-batches a step and process.
        rank: Number of this process.
        count: Processes that share the batch.
        start: Micro-batches of this process to leave out at the beginning.
        views: Epochs after which the augmentations repeat; by default they never do. The order never does.
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
    ) -> None:
        self.size, self.batch, self.epochs, self.seed = size, batch, epochs, seed
        self.start, self.views = start, views or epochs
        self.rank, self.count = rank, count
        self.micro_batch = batch // (accumulate * count)
        self.batches_per_epoch = size // batch * accumulate

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[Key]]:
        order: list[int] = []
        for number in range(self.start, len(self)):
            epoch, position = divmod(number, self.batches_per_epoch)
            if position == 0 or not order:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch) % 2**63)
                order = torch.randperm(self.size, generator=generator).tolist()
            first = (position * self.count + self.rank) * self.micro_batch
            yield [Key(epoch % self.views, index) for index in order[first : first + self.micro_batch]]


class EvaluationOrder(Sampler[Key]):
    """Every image once, in order; of several processes each has every `count`-th, without filling up."""

    def __init__(self, size: int, rank: int = 0, count: int = 1) -> None:
        self._images = range(rank, size, count)

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Key]:
        return (Key(0, index) for index in self._images)


def training_loader(dataset: ReplayDataset, stream: Sampler[list[Key]], workers: int) -> DataLoader[Sample]:
    """Batches of a training run, in the stream's order."""
    return DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def evaluation_loader(
    dataset: ReplayDataset, batch: int, workers: int, *, rank: int = 0, count: int = 1
) -> DataLoader[Sample]:
    """Every image of a split once, in order; see `EvaluationOrder` for several processes."""
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=EvaluationOrder(len(dataset), rank, count),
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


class CorruptImages:
    """Counts the unreadable files of a run and stops it above a limit.

    Args:
        limit: Files to put up with.
        report: Called with a line for each new one.
    """

    def __init__(self, limit: int, report: Callable[[str], object] | None = None) -> None:
        self.limit, self.report = limit, report
        self.paths: set[str] = set()

    def add(self, paths: tuple[str, ...]) -> None:
        """Note unreadable files.

        Raises:
            UserError: If there are more than the limit; names the last.
        """
        for path in sorted(set(paths) - self.paths):
            if self.report is not None:
                self.report(f"warning: left out, cannot be read: {path}")
        self.paths.update(paths)
        if len(self.paths) > self.limit:
            raise UserError(
                f"data: {len(self.paths)} unreadable image(s), the last {paths[-1]}; "
                f"mend or remove them, or raise max_corrupt (now {self.limit})"
            )
