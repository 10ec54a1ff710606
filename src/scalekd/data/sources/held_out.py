"""A validation split that is held out from the training images of a source that has none."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalekd.data.hold_out import select
from scalekd.data.sources.source import Source
from scalekd.data.split import UNLABELLED, Split, Store
from scalekd.errors import UserError, printable

_CHUNK, _END = 1 << 20, 4096  # bytes
# Folders between classes that are probably splits, in lower case.
_NO_CLASSES = ("train", "training", "val", "valid", "validation", "test", "testing", "unlabelled", "unlabeled")


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
        return part if labelled else replace(part, labels=np.full_like(part.labels, UNLABELLED), classes=(), sets=None)

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
        wrong = next((name for name in split.classes if name.lower() in _NO_CLASSES), None)
        if wrong is not None:
            raise UserError(
                f"val_share: {split.root} has a folder {wrong!r} between its classes; move the classes to "
                f"{split.root / self.train}"
            )
        return split


def choose_held_out(split: Split, share: float) -> NDArray[np.bool_]:
    """Choose the images of a split that are held out: of each class its share, rounded, but at least one image.

    With several labels per image, an image counts for its rarest class, and a class may have none that is held out.

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
    strata = split.strata
    order = order[np.argsort(strata[order], kind="stable")]  # class by class
    first = 0 if split.sets is None else UNLABELLED
    ends = np.searchsorted(strata[order], np.arange(first, len(split.classes) + 1))
    held = np.zeros(len(split), bool)
    for own in (order[first:end] for first, end in pairwise(ends.tolist())):
        least = 1 if split.sets is None else 0
        missing = max(least, round(share * len(own))) - np.count_nonzero(held[own])
        for index in own.tolist():
            if missing <= 0:
                break
            if not held[index]:
                group = copies.get(index, [index])
                held[group] = True
                missing -= np.count_nonzero(strata[group] == strata[index])
    if split.sets is not None:
        if not held.any():
            raise UserError(f"val_share: {share:g} of each class of {split.root} is less than one image; set it higher")
        return held
    for name, own in zip(split.classes, np.split(order, ends[1:-1]), strict=True):
        if len(own) and (held[own].all() or not held[own].any()):
            raise UserError(
                f"val_share: class {printable(name)!r} has {len(own)} image(s), too few different ones to train and to "
                "validate on; add images, or remove the class"
            )
    return held


def _equal_files(store: Store) -> dict[int, list[int]]:
    """Return the indices of all copies of each image that has copies.

    Of files of equal size, the first and last 4 kB are read, and the whole of those that agree in them.
    """
    by_size: dict[Any, list[int]] = defaultdict(list)
    for index in range(len(store.names)):
        with suppress(OSError):  # training counts unreadable files
            by_size[store.size(index)].append(index)
    copies: dict[int, list[int]] = {}
    for same in _divided(_divided(by_size.values(), partial(_ends, store)), partial(_digest, store)):
        copies |= dict.fromkeys(same, same)
    return copies


def _divided(groups: Iterable[list[int]], key: Callable[[int], bytes]) -> Iterator[list[int]]:
    """Divide groups of images further by a key; only groups of several images are kept."""
    for group in groups:
        if len(group) > 1:
            found: dict[bytes, list[int]] = defaultdict(list)
            for index in group:
                with suppress(OSError):
                    found[key(index)].append(index)
            yield from (part for part in found.values() if len(part) > 1)


def _ends(store: Store, index: int) -> bytes:
    """Return the SHA-256 of the first and last bytes of an image's file; raises OSError."""
    found = store.open(index)
    with open(found, "rb") if isinstance(found, str) else found as stream:
        first = stream.read(_END)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _END))
        return hashlib.sha256(first + stream.read(_END)).digest()


def _digest(store: Store, index: int) -> bytes:
    """Return the SHA-256 of an image's file; raises OSError."""
    found, digest = store.open(index), hashlib.sha256()
    with open(found, "rb") if isinstance(found, str) else found as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
