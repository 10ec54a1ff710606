"""Reading every image of a split once, and what is to be said of them."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset

from scalekd.data.decoding import MAX_PIXELS, UnreadableImageError, open_image, read
from scalekd.data.loader import leave_stopping_to_the_main_process
from scalekd.data.orientation import AS_STORED
from scalekd.data.patience import Patience
from scalekd.data.pixels import is_deep, numbers
from scalekd.data.split import UNLABELLED, Split
from scalekd.data.steady import SteadyLoader

_BATCH = 32
_LARGEST = 1 << 30  # bytes of an image file


class Look(NamedTuple):
    """What one image is.

    Attributes:
        digest: A hash of its bytes; empty where there are none.
        mode: PIL's name for the kind of its pixels; empty where it cannot be read.
        width, height: Its size, upright.
        turned: Whether it is stored turned or mirrored.
        values: The least and the largest number in it, of a kind whose range is not given by its mode.
        reason: Why it cannot be read, where we know better than that it is corrupt.
    """

    digest: bytes
    mode: str = ""
    width: int = 0
    height: int = 0
    turned: bool = False
    values: tuple[float, float] | None = None
    reason: str = ""


class _Looks(Dataset[Look]):
    def __init__(self, split: Split, max_pixels: int, patience: float) -> None:
        self.split, self.max_pixels, self.patience = split, max_pixels, Patience(patience)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Look:
        digest = b""
        try:
            content = self.patience.read(self.split.root, partial(self._bytes, index))
            digest = hashlib.blake2b(content, digest_size=16).digest()
            name = self.split.store.names[index]
            with open_image(lambda: io.BytesIO(content), self.max_pixels, name=name) as image:
                look = Look(digest, image.mode, *image.size, turned=image.turn != AS_STORED)
                read(image)
                if is_deep(image.stored):
                    values = numbers(image.stored)
                    look = look._replace(values=(float(values.min()), float(values.max())))
        except UnreadableImageError as error:
            return Look(digest, reason=error.reason)
        return look

    def _bytes(self, index: int) -> bytes:
        try:
            source = self.split.store.open(index)
            if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would be waited for
                raise UnreadableImageError("no regular file", "no regular file")
            with open(source, "rb") if isinstance(source, str) else source as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise UnreadableImageError(error, error.strerror or "") from error
        if len(content) > _LARGEST:
            raise UnreadableImageError("too large", f"more than {_LARGEST} bytes")
        return content


@dataclass(frozen=True)
class Findings:
    """What a split holds.

    Attributes:
        split: Its images.
        digests: `[n]`, a hash of each image's bytes; of no meaning for those that cannot be read.
        modes: Images of each of PIL's modes.
        sizes: `[m, 2]`, widths and heights of those that can be read, upright, in pixels.
        corrupt: Numbers of the others, each with the reason where we know better than that it is corrupt.
        turned: How many are stored turned or mirrored.
        values: By mode, the least and the largest number of images whose mode does not say what is black and white.
    """

    split: Split
    digests: NDArray[np.bytes_]
    modes: Counter[str]
    sizes: NDArray[np.int32]
    corrupt: dict[int, str]
    turned: int
    values: dict[str, tuple[float, float]]

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class."""
        labels = self.split.labels[self.split.labels != UNLABELLED]
        counts = np.bincount(labels, minlength=len(self.split.classes))
        return dict(zip(self.split.classes, counts.tolist(), strict=True))

    def locate(self, images: Iterable[int]) -> list[str]:
        """Where images are."""
        return [self.split.locate(index) for index in images]

    def duplicates(self) -> list[list[int]]:
        """The images that have equal bytes, a list for each such set."""
        order = np.argsort(self.digests, kind="stable")
        ordered = self.digests[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        groups = np.split(order, starts[1:])
        return sorted(group.tolist() for group in groups if len(group) > 1 and self.digests[group[0]])

    def leaks(self, other: Findings) -> list[tuple[int, int]]:
        """The images that another split holds, too: the first one there for each one here."""
        first = {digest: index for index, digest in reversed(list(enumerate(other.digests.tolist())))}
        return [(index, first[d]) for index, d in enumerate(self.digests.tolist()) if d and d in first]


def check_split(
    split: Split,
    workers: int,
    progress: Callable[[int], object],
    report: Callable[[str], object] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    patience: float = 0,
) -> Findings:
    """Read every image of a split, in processes of their own.

    Args:
        split: The images.
        workers: Processes that read and decode.
        progress: Called with the number of images that were read since the last call.
        report: Called with a line when processes that died are replaced.
        max_pixels: Larger images count as corrupt.
        patience: Seconds to wait for data that is gone.
    """
    digests = np.zeros(len(split), "S32")  # as hexadecimal digits: numpy's strings end at a zero byte
    modes: Counter[str] = Counter()
    corrupt: dict[int, str] = {}
    values: dict[str, tuple[float, float]] = {}
    turned = 0
    sizes: list[tuple[int, int]] = []
    index = 0
    batches = BatchSampler(range(len(split)), _BATCH, drop_last=False)
    for looks in _loader(_Looks(split, max_pixels, patience), batches, workers, report):
        for look in looks:
            digests[index] = look.digest.hex()
            if look.mode:
                modes[look.mode] += 1
                sizes.append((look.width, look.height))
                turned += look.turned
                if look.values is not None:
                    least, largest = values.get(look.mode, look.values)
                    values[look.mode] = min(least, look.values[0]), max(largest, look.values[1])
            else:
                corrupt[index] = look.reason
            index += 1
        progress(len(looks))
    every = np.array(sizes, np.int32).reshape(-1, 2)
    return Findings(split, digests, modes, every, corrupt, turned, values)


def _loader(
    looks: _Looks, batches: BatchSampler, workers: int, report: Callable[[str], object] | None
) -> SteadyLoader[list[Look], int]:
    def load(given: Iterable[list[int]]) -> DataLoader[Look]:
        return DataLoader(
            looks,
            batch_sampler=given,
            num_workers=workers,
            worker_init_fn=leave_stopping_to_the_main_process,
            collate_fn=list,
        )

    return SteadyLoader(batches, load, report)
