"""The images of one split, independent of how they are stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from scalekd.data.decoding import MAX_PIXELS, OpenedImage, open_image
from scalekd.data.skipped_files import SkippedFiles

UNLABELLED = -1
_AT_ONCE = 65536

Labels = NDArray[np.int32]


class Store(Protocol):
    """Random access to stored images; any image can be read at any time, by any process.

    Attributes:
        root: The location, for messages.
        names: A name for each image, which does not depend on where the data is stored.
    """

    @property
    def root(self) -> Path: ...

    @property
    def names(self) -> Sequence[str]: ...

    def locate(self, index: int) -> str:
        """Return an image's location, for messages."""

    def open(self, index: int) -> str | IO[bytes]:
        """Return an image's path or its content; raises OSError."""

    def size(self, index: int) -> int:
        """Return an image's size in bytes; raises OSError."""


@dataclass(frozen=True)
class Files:
    """Image files in a folder; see `Store`.

    Attributes:
        root: The folder.
        names: Their paths relative to it.
    """

    root: Path
    names: Sequence[str]

    def locate(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def open(self, index: int) -> str:
        return self.locate(index)

    def size(self, index: int) -> int:
        return os.stat(self.locate(index)).st_size


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split.

    Attributes:
        store: Where the images are stored.
        labels: Class index of each image `[n]`, -1 if unlabelled; for several labels per image, an index into `sets`.
        classes: Class names; empty if no image is labelled.
        skipped: The files and folders that the listing skipped.
        sets: With several labels per image (multi-label), the sets of class indices that occur; otherwise None.
    """

    store: Store
    labels: Labels
    classes: tuple[str, ...]
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    sets: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def root(self) -> Path:
        """The location of the images, for messages."""
        return self.store.root

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return int(np.count_nonzero(self.labels == UNLABELLED))

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Number of labelled images of each class `[K]`."""
        counts = np.bincount(self.labels[self.labels != UNLABELLED], minlength=len(self.sets or self.classes))
        if self.sets is None:
            return counts
        found = np.zeros(len(self.classes), np.int64)
        for classes, count in zip(self.sets, counts.tolist(), strict=True):
            found[list(classes)] += count
        return found

    @property
    def strata(self) -> Labels:
        """Group of each image `[n]` for stratified draws: its class, with several labels the rarest, or -1 for none."""
        if self.sets is None:
            return self.labels
        counts = self.class_counts
        rarest = [min(classes, key=lambda each: counts[each], default=UNLABELLED) for classes in self.sets]
        return np.array([*rarest, UNLABELLED], np.int32)[self.labels]  # -1 takes the last one

    def target(self, index: int) -> int | NDArray[np.float32]:
        """Return an image's label: its class index, -1 if unlabelled.

        With several labels per image, return `[K]`: 1 for its classes and 0 for others, -1 for all if unlabelled.
        """
        label = int(self.labels[index])
        if self.sets is None:
            return label
        target = np.full(len(self.classes), float(label == UNLABELLED) * UNLABELLED, np.float32)
        if label != UNLABELLED:
            target[list(self.sets[label])] = 1
        return target

    def locate(self, index: int) -> str:
        """Return an image's location, for messages."""
        return self.store.locate(index)

    def open(self, index: int, max_pixels: int = MAX_PIXELS) -> AbstractContextManager[OpenedImage]:
        """Open an image without decoding it yet.

        Raises:
            UnreadableImageError: If the file is missing, not an image, or has more pixels than `max_pixels`.
        """
        return open_image(lambda: self.store.open(index), max_pixels, name=self.store.names[index])

    @property
    def fingerprint(self) -> str:
        """The number of images and a digest of their names and labels (not of their pixels)."""
        digest, names = hashlib.sha256(), iter(self.store.names)
        for first in range(0, len(self), _AT_ONCE):
            labels = self.labels[first : first + _AT_ONCE].tolist()
            if self.sets is not None:
                labels = [label if label == UNLABELLED else self.sets[label] for label in labels]
            lines = [f"{next(names)}\0{label}\n" for label in labels]
            digest.update("".join(lines).encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"
