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
        labels: Class index of each image `[n]`, -1 if unlabelled.
        classes: Class names; empty if no image is labelled.
        skipped: The files and folders that the listing skipped.
    """

    store: Store
    labels: Labels
    classes: tuple[str, ...]
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

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
            lines = [f"{next(names)}\0{label}\n" for label in labels]
            digest.update("".join(lines).encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"
