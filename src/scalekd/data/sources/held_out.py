"""A validation split that is held out from the training images of a source that has none."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scalekd.data.hold_out import select
from scalekd.data.sources.source import Source
from scalekd.data.split import UNLABELLED, Split, Store
from scalekd.errors import UserError, printable

_CHUNK = 1 << 20  # bytes
_NO_CLASSES = ("unlabelled", "test")  # folders between classes that are probably splits


class HeldOut:
    """A source whose training split is divided into one to train on and one to validate on; see `Source`.

    The division depends on the images' names, labels and equal files and on the share, and on no random number: runs
    with any seed, and all commands, see the same two splits.

    Args:
        source: The source.
        train: Name of the split that is divided.
        val: Name of the split that is held out; the source must not have it.
        share: The share of each class's images that is held out, in (0, 0.5].
        whole: The name under which the source reads all of its folders as classes, if it has no split `train`.
    """

    def __init__(self, source: Source, train: str, val: str, share: float, whole: str | None = None) -> None:
        self.source, self.train, self.val, self.share, self.whole = source, train, val, share, whole
        self._parts: dict[str, Split] = {}

    def has(self, name: str) -> bool:
        return name in (self.train, self.val) or self.source.has(name)

    def read(self, name: str, *, labelled: bool = True) -> Split:
        if name not in (self.train, self.val):
            return self.source.read(name, labelled=labelled)
        if not self._parts:
            split = self._read_whole()
            held = choose_held_out(split, self.share)
            self._parts = {
                self.train: select(split, np.flatnonzero(~held)),
                self.val: select(split, np.flatnonzero(held)),
            }
        part = self._parts[name]
        return part if labelled else replace(part, labels=np.full_like(part.labels, UNLABELLED), classes=())

    def _read_whole(self) -> Split:
        """Read the images that are to be divided.

        Raises:
            UserError: If there is a validation split already, or a folder that is probably no class.
        """
        if self.source.has(self.val):
            raise UserError(f"val_share: there is a split {self.val!r} already; leave val_share out to validate on it")
        if self.source.has(self.train) or self.whole is None:
            return self.source.read(self.train)
        split = self.source.read(self.whole)
        wrong = next((name for name in split.classes if name in _NO_CLASSES), None)
        if wrong is not None:
            raise UserError(
                f"val_share: {split.root} has a folder {wrong!r} between its classes; move the classes to "
                f"{split.root / self.train}"
            )
        return split


def choose_held_out(split: Split, share: float) -> NDArray[np.bool_]:
    """Choose the images of a split that are held out: of each class its share, rounded, but at least one image.

    Args:
        split: The images.
        share: In (0, 0.5].

    Returns:
        Whether each image is held out `[n]`. Files with equal bytes are on one side.

    Raises:
        UserError: If a class has too few different images for both sides.
    """
    copies = _equal_files(split.store)
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in split.store.names]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), np.intp)
    held = np.zeros(len(split), bool)
    for label, name in enumerate(split.classes):
        own = order[split.labels[order] == label]
        count = max(1, round(share * len(own)))
        for index in own.tolist():
            if np.count_nonzero(held[own]) >= count:
                break
            held[copies.get(index, [index])] = True
        if len(own) and (held[own].all() or not held[own].any()):
            raise UserError(
                f"val_share: class {printable(name)!r} has {len(own)} image(s), too few different ones to train and to "
                "validate on; add images, or remove the class"
            )
    return held


def _equal_files(store: Store) -> dict[int, list[int]]:
    """Return the indices of all copies of each image that has copies. Only files of equal size are read."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index in range(len(store.names)):
        try:
            by_size[store.size(index)].append(index)
        except OSError:  # training counts unreadable files
            continue
    copies: dict[int, list[int]] = {}
    for same in by_size.values():
        by_content: dict[bytes, list[int]] = defaultdict(list)
        for index in same if len(same) > 1 else ():
            try:
                by_content[_digest(store, index)].append(index)
            except OSError:
                continue
        copies |= {index: group for group in by_content.values() if len(group) > 1 for index in group}
    return copies


def _digest(store: Store, index: int) -> bytes:
    """Return the SHA-256 of an image's file; raises OSError."""
    found, digest = store.open(index), hashlib.sha256()
    with open(found, "rb") if isinstance(found, str) else found as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
