"""The images of one split, wherever they are kept."""

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

from scalekd.data.aside import Aside
from scalekd.data.decoding import MAX_PIXELS, OpenedImage, open_image

UNLABELLED = -1
_AT_ONCE = 65536

Labels = NDArray[np.int32]


class Store(Protocol):
    """Where images are kept; any of them can be read at any time, by any process.

    Attributes:
        root: The place, for messages.
        names: A name for each image, the same wherever the data lies.
    """

    @property
    def root(self) -> Path: ...

    @property
    def names(self) -> Sequence[str]: ...

    def locate(self, index: int) -> str:
        """Where an image is, for messages."""

    def open(self, index: int) -> str | IO[bytes]:
        """Its path, or its bytes; raises OSError."""

    def size(self, index: int) -> int:
        """Its bytes; raises OSError."""


@dataclass(frozen=True)
class Files:
    """Image files in a folder; see `Store`.

    Attributes:
        root: The folder.
        names: Their paths in it.
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
        store: Where they are kept.
        labels: Class index of each `[n]`, -1 for an unlabelled one.
        classes: Class names; empty where no image is labelled.
        aside: What is in their place beside them.
    """

    store: Store
    labels: Labels
    classes: tuple[str, ...]
    aside: Aside = field(default_factory=Aside)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def root(self) -> Path:
        """Where the images are, for messages."""
        return self.store.root

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return int(np.count_nonzero(self.labels == UNLABELLED))

    def locate(self, index: int) -> str:
        """Where an image is, for messages."""
        return self.store.locate(index)

    def open(self, index: int, max_pixels: int = MAX_PIXELS) -> AbstractContextManager[OpenedImage]:
        """An image, not decoded yet.

        Raises:
            UnreadableImageError: If it is missing, no image, or has more pixels than `max_pixels`.
        """
        return open_image(lambda: self.store.open(index), max_pixels, name=self.store.names[index])

    @property
    def fingerprint(self) -> str:
        """A digest of the images' names and labels (not of their pixels), with their number."""
        digest, names = hashlib.sha256(), iter(self.store.names)
        for first in range(0, len(self), _AT_ONCE):
            labels = self.labels[first : first + _AT_ONCE].tolist()
            lines = [f"{next(names)}\0{label}\n" for label in labels]
            digest.update("".join(lines).encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"
