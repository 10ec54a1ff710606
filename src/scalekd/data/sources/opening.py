"""From the text of the key `data` to its splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scalekd.data import folder
from scalekd.data.sources.hub import HubSource
from scalekd.data.sources.joined import join
from scalekd.data.sources.lists import SUFFIXES, ListFile
from scalekd.data.sources.shards import ShardFolder, ShardPattern
from scalekd.data.sources.source import Source, same_classes
from scalekd.data.sources.vision import VisionSource
from scalekd.data.split import Files, Split

_SCHEMES: dict[str, Callable[[str], Source]] = {"hf": HubSource, "torchvision": VisionSource}


class Directory:
    """A folder: for each split a list, shards, or a folder of images; see `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        return self._kept_otherwise(name) is not None or (self.path / name).is_dir()

    def read(self, name: str, *, labelled: bool = True) -> Split:
        source = self._kept_otherwise(name)
        if source is not None:
            return source.read(name, labelled=labelled)
        return folder.read_split(self.path, name) if labelled else folder.read_unlabelled(self.path, name)

    def _kept_otherwise(self, name: str) -> Source | None:
        """The split's source where it is no folder of images."""
        for file in (self.path / f"{name}{suffix}" for suffix in SUFFIXES):
            if file.is_file():
                return ListFile(file, only=name)
        shards = ShardFolder(self.path)
        return shards if shards.has(name) else None


def open_data(data: str | Path) -> Source:
    """The source that `data` names; see docs/data.md for what it may be.

    Raises:
        UserError: If it names none.
    """
    text = os.fspath(data)
    scheme, _, name = text.partition(":")
    if scheme in _SCHEMES:
        return _SCHEMES[scheme](name)
    path = Path(text)
    if path.is_dir():
        return Directory(path)
    if "{" in text or "://" in text or path.suffix == ".tar":
        return ShardPattern(text)
    return ListFile(path) if path.suffix in SUFFIXES else Directory(path)


def absolute(data: str) -> str:
    """The same data, readable from any folder."""
    scheme, _, name = data.partition(":")
    if scheme == "torchvision":
        name, _, root = name.partition("@")
        return f"torchvision:{name}@{os.path.abspath(root)}" if root else data
    if scheme == "hf":
        return f"hf:{os.path.abspath(name)}" if os.path.isdir(name) else data
    return data if "://" in data else os.path.abspath(data)


def read_split(data: str | Path, name: str) -> Split:
    """The images of a split, with labels and classes.

    Raises:
        UserError: If there is no such split, it has no images, or fewer than two classes.
    """
    return open_data(data).read(name)


def read_splits(data: str | Path, train: str, val: str) -> tuple[Split, Split]:
    """Both splits, with the same classes in the same order.

    Raises:
        UserError: See `read_split`; also if the two do not have the same classes.
    """
    source = open_data(data)
    training = source.read(train)
    return training, same_classes(training, source.read(val), (train, val))


def read_unlabelled(data: str | Path, name: str) -> Split:
    """The images of a split, without labels.

    Raises:
        UserError: If there is no such split, or it has no images.
    """
    return open_data(data).read(name, labelled=False)


def read_label_free(data: str | Path, train: str, val: str, unlabelled: str) -> tuple[Split, Split]:
    """A training split without labels, and the validation split, which is empty where there is none.

    The training images are those of the split `train`, of `unlabelled`, or of both.

    Raises:
        UserError: If both are missing, or one holds no image; for the validation split see `read_split`.
    """
    source = open_data(data)
    there = [name for name in (train, unlabelled) if source.has(name)] or [train]
    training = source.read(there[0], labelled=False)
    for name in there[1:]:
        training = join(training, source.read(name, labelled=False))
    if source.has(val):
        return training, source.read(val)
    return training, Split(Files(Path(data) / val, ()), np.empty(0, np.int32), ())
