"""The images of one split, wherever they are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from PIL import Image

from scalekd.data.decoding import open_image

UNLABELLED = -1


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


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        store: Where they are kept.
        labels: Class index of each, -1 for an unlabelled one.
        classes: Class names; empty where no image is labelled.
    """

    store: Store
    labels: Sequence[int]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def root(self) -> Path:
        """Where the images are, for messages."""
        return self.store.root

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return sum(label == UNLABELLED for label in self.labels)

    def locate(self, index: int) -> str:
        """Where an image is, for messages."""
        return self.store.locate(index)

    def open(self, index: int) -> Image.Image:
        """An image, not decoded yet.

        Raises:
            UnreadableImageError: If it is missing or no image.
        """
        return open_image(lambda: self.store.open(index))

    @property
    def fingerprint(self) -> str:
        """A digest of the images' names and labels (not of their pixels), with their number."""
        digest = hashlib.sha256()
        for name, label in zip(self.store.names, self.labels, strict=True):
            digest.update(f"{name}\0{label}\n".encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"
