"""Two splits as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from scalekd.data.names import Names
from scalekd.data.split import Split, Store


@dataclass(frozen=True)
class Joined:
    """The images of one store and then those of another; see `Store`.

    Attributes:
        root: What the places of both have in common.
        names: Their names from there.
        first: The first store.
        second: The second one.
    """

    root: Path
    names: Sequence[str]
    first: Store
    second: Store

    def _find(self, index: int) -> tuple[Store, int]:
        length = len(self.first.names)
        return (self.first, index) if index < length else (self.second, index - length)

    def locate(self, index: int) -> str:
        store, own = self._find(index)
        return store.locate(own)

    def open(self, index: int) -> str | IO[bytes]:
        store, own = self._find(index)
        return store.open(own)

    def size(self, index: int) -> int:
        store, own = self._find(index)
        return store.size(own)


def join(split: Split, unlabelled: Split) -> Split:
    """The images of a split and then those of an unlabelled one of the same source."""
    parts = (split.store, unlabelled.store)
    roots = [part.root for part in parts]
    if any(root.is_absolute() for root in roots):  # shards' are, folders' are as they were given
        roots = [root.absolute() for root in roots]
    root = Path(os.path.commonpath(roots))
    names = Names.pack(
        os.path.normpath(os.path.join(os.path.relpath(place, root), name))
        for place, part in zip(roots, parts, strict=True)
        for name in part.names
    )
    labels = np.concatenate([split.labels, unlabelled.labels])
    return Split(Joined(root, names, *parts), labels, split.classes, split.aside.joined(unlabelled.aside))
