"""Read every image of a split once, and collect what `scalekd data check` reports."""

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
from scalekd.data.outages import OutageRetry
from scalekd.data.pixels import is_deep, numbers
from scalekd.data.split import Split
from scalekd.data.worker_restarts import RestartingLoader

_BATCH = 32
_LARGEST = 1 << 30  # bytes of an image file


class CheckedImage(NamedTuple):
    """What was found out about one image.

    Attributes:
        digest: A hash of its bytes; empty if there are none.
        mode: PIL's name for its kind of pixels; empty if it cannot be read.
        width, height: Its size when upright.
        turned: Whether it is stored rotated or mirrored.
        values: Its smallest and largest value if the mode does not determine the range, otherwise None.
        reason: Why it cannot be read, if more is known than that it is corrupt.
    """

    digest: bytes
    mode: str = ""
    width: int = 0
    height: int = 0
    turned: bool = False
    values: tuple[float, float] | None = None
    reason: str = ""


class _CheckedImages(Dataset[CheckedImage]):
    def __init__(self, split: Split, max_pixels: int, patience: float) -> None:
        self.split, self.max_pixels, self.patience = split, max_pixels, OutageRetry(patience)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> CheckedImage:
        digest = b""
        try:
            content = self.patience.read(self.split.root, partial(self._bytes, index))
            digest = hashlib.blake2b(content, digest_size=16).digest()
            name = self.split.store.names[index]
            with open_image(lambda: io.BytesIO(content), self.max_pixels, name=name) as image:
                checked = CheckedImage(digest, image.mode, *image.size, turned=image.turn != AS_STORED)
                read(image)
                if is_deep(image.stored):
                    values = numbers(image.stored)
                    checked = checked._replace(values=(float(values.min()), float(values.max())))
        except UnreadableImageError as error:
            return CheckedImage(digest, reason=error.reason)
        return checked

    def _bytes(self, index: int) -> bytes:
        try:
            source = self.split.store.open(index)
            if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would be waited for
                raise UnreadableImageError("not a regular file", "not a regular file")
            with open(source, "rb") if isinstance(source, str) else source as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise UnreadableImageError(error, error.strerror or "") from error
        if len(content) > _LARGEST:
            raise UnreadableImageError("too large", f"more than {_LARGEST} bytes")
        return content


@dataclass(frozen=True)
class Findings:
    """What was found in a split.

    Attributes:
        split: The split's images.
        digests: `[n]`, a hash of each image's bytes; not meaningful for unreadable images.
        modes: Number of images by PIL mode.
        sizes: `[m, 2]`, widths and heights of the readable images when upright, in pixels.
        corrupt: The indices of the unreadable images, each with the reason if more is known than that it is corrupt.
        turned: Number of images that are stored rotated or mirrored.
        values: The smallest and largest value, by mode, for modes that do not determine what is black and white.
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
        """Number of images by class."""
        return dict(zip(self.split.classes, self.split.class_counts.tolist(), strict=True))

    def locate(self, images: Iterable[int]) -> list[str]:
        """Return the locations of images, given by index, for messages."""
        return [self.split.locate(index) for index in images]

    def duplicates(self) -> list[list[int]]:
        """Return the indices of images with equal bytes, one list per group of duplicates."""
        order = np.argsort(self.digests, kind="stable")
        ordered = self.digests[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        groups = np.split(order, starts[1:])
        return sorted(group.tolist() for group in groups if len(group) > 1 and self.digests[group[0]])

    def leaks(self, other: Findings) -> list[tuple[int, int]]:
        """Return the images that another split also holds, as pairs: the index here, and the first index there."""
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
    """Read every image of a split in worker processes.

    Args:
        split: The images.
        workers: Processes that read and decode.
        progress: Called with the number of images read since the last call.
        report: Called with a line when workers that died are replaced.
        max_pixels: Images with more pixels count as corrupt.
        patience: Seconds to wait for data that has become unavailable.
    """
    digests = np.zeros(len(split), "S32")  # hexadecimal digits, because numpy's strings end at a zero byte
    modes: Counter[str] = Counter()
    corrupt: dict[int, str] = {}
    values: dict[str, tuple[float, float]] = {}
    turned = 0
    sizes: list[tuple[int, int]] = []
    index = 0
    batches = BatchSampler(range(len(split)), _BATCH, drop_last=False)
    for images in _loader(_CheckedImages(split, max_pixels, patience), batches, workers, report):
        for image in images:
            digests[index] = image.digest.hex()
            if image.mode:
                modes[image.mode] += 1
                sizes.append((image.width, image.height))
                turned += image.turned
                if image.values is not None:
                    least, largest = values.get(image.mode, image.values)
                    values[image.mode] = min(least, image.values[0]), max(largest, image.values[1])
            else:
                corrupt[index] = image.reason
            index += 1
        progress(len(images))
    every = np.array(sizes, np.int32).reshape(-1, 2)
    return Findings(split, digests, modes, every, corrupt, turned, values)


def _loader(
    images: _CheckedImages, batches: BatchSampler, workers: int, report: Callable[[str], object] | None
) -> RestartingLoader[list[CheckedImage], int]:
    def load(given: Iterable[list[int]]) -> DataLoader[CheckedImage]:
        return DataLoader(
            images,
            batch_sampler=given,
            num_workers=workers,
            worker_init_fn=leave_stopping_to_the_main_process,
            collate_fn=list,
        )

    return RestartingLoader(batches, load, report)
