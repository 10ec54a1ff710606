"""Join two splits into one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from scalekd.data.names import Names
from scalekd.data.split import Split, Store


@dataclass(frozen=True)
class Joined:
    """The images of one store followed by those of another; see `Store`.

    Attributes:
        root: The common parent of both stores' locations.
        names: The names of the images relative to `root`.
        first: The first store.
        second: The second store.
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
    """Append the images of an unlabelled split to those of another split of the same source."""
    parts = (split.store, unlabelled.store)
    roots = [part.root for part in parts]
    if any(root.is_absolute() for root in roots):  # shards have absolute roots, folders have them as passed
        roots = [root.absolute() for root in roots]
    root = Path(os.path.commonpath(roots))
    names = Names.pack(
        os.path.normpath(os.path.join(os.path.relpath(place, root), name))
        for place, part in zip(roots, parts, strict=True)
        for name in part.names
    )
    labels = np.concatenate([split.labels, unlabelled.labels])
    skipped = split.skipped.joined(unlabelled.skipped)
    return replace(split, store=Joined(root, names, *parts), labels=labels, skipped=skipped)
