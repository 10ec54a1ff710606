"""Takes images out of a split: some to train on, others to measure on, each class in the same proportion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from scalekd.data.names import Names
from scalekd.data.split import UNLABELLED, Split, Store

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Selected:
    """Some images of a store; see `Store`.

    Attributes:
        store: The store.
        indices: Index of each image in `store`.
        names: Name of each image.
    """

    store: Store
    indices: Indices
    names: Names

    @property
    def root(self) -> Path:
        return self.store.root

    def locate(self, index: int) -> str:
        return self.store.locate(int(self.indices[index]))

    def open(self, index: int) -> str | IO[bytes]:
        return self.store.open(int(self.indices[index]))

    def size(self, index: int) -> int:
        return self.store.size(int(self.indices[index]))


def select(split: Split, indices: Indices) -> Split:
    """Return the images of a split at `indices`, in their order in the split, with the classes of the whole split."""
    indices = np.sort(indices)
    names = Names.pack(split.store.names[index] for index in indices)
    return replace(split, store=Selected(split.store, indices, names), labels=split.labels[indices])


def draw(split: Split, count: int, seed: int) -> Split:
    """Draw at most `count` labelled images; the classes have about the shares that they have in the split."""
    order = _stratified_order(split.strata, seed)
    return select(split, order[split.labels[order] != UNLABELLED][:count])


def hold_out(split: Split, kept: int, held: int, seed: int) -> tuple[Split, Split]:
    """Draw images to train on and others, with labels, to measure on. Both contain the classes in the split's shares.

    Args:
        split: The images, with or without labels.
        kept: Number of images to train on, at most.
        held: Number of labelled images to measure on.
        seed: Seed of the draw.

    Returns:
        The images to train on, and those to measure on.
    """
    order = _stratified_order(split.strata, seed)
    labelled = order[split.labels[order] != UNLABELLED]
    measured = labelled[len(labelled) - held :]  # the last ones, so that the first part of the rest keeps its shares
    return select(split, order[~np.isin(order, measured)][:kept]), select(split, measured)


def _stratified_order(labels: NDArray[np.int32], seed: int) -> Indices:
    """Return the indices in a random order in which any first part has about the same class shares as the whole."""
    random = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        position[own] = (np.arange(len(own)) + random.random()) / len(own)
    return np.argsort(position, kind="stable")
