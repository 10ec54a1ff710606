"""Open the source that the key `data` names, and read its splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scalekd.data import folder
from scalekd.data.sources.held_out import HeldOut
from scalekd.data.sources.hub import HubSource
from scalekd.data.sources.joined import join
from scalekd.data.sources.lists import SUFFIXES, ListFile, is_list
from scalekd.data.sources.shards import ShardFolder, ShardPattern
from scalekd.data.sources.source import Source, same_classes, with_filled_classes
from scalekd.data.sources.vision import VisionSource
from scalekd.data.split import Files, Split
from scalekd.errors import UserError
from scalekd.recipes import AS_USUAL, ListKeys, SourceKeys

_SCHEMES: dict[str, Callable[[str], Source]] = {"hf": HubSource, "torchvision": VisionSource}
_FIX = f"specify a folder, a list ({', '.join(SUFFIXES)}) or tar shards"
_OTHER_FILES = {
    ".json": "a JSON list needs one object per line: save it as .jsonl (pandas: to_json(orient='records', lines=True))",
    ".parquet": "pass its folder as hf:FOLDER",
    ".arrow": "pass its folder as hf:FOLDER",
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".zip": "unpack it and pass the folder",
    ".tgz": "unpack it and pass the folder, or make uncompressed tar shards",
    ".gz": "unpack it and pass the folder, or make uncompressed tar shards",
}


class Directory:
    """A folder that holds a list, shards or a folder of images for each split; see `Source`."""

    def __init__(self, path: Path, keys: ListKeys = AS_USUAL) -> None:
        self.path, self.keys = path, keys

    def has(self, name: str) -> bool:
        return self._list_or_shards(name) is not None or (self.path / name).is_dir()

    def read(self, name: str, *, labelled: bool = True) -> Split:
        source = self._list_or_shards(name)
        if labelled and not isinstance(source, ListFile):
            _refuse_list_keys(self.keys, f"split {name!r} of {self.path}")
        if source is not None:
            return source.read(name, labelled=labelled)
        if not labelled:
            return folder.read_unlabelled(self.path, name)
        return folder.read_split(self.path, name)

    def _list_or_shards(self, name: str) -> Source | None:
        """Return the split's list or shards, or None if there is neither (it may be a folder of images)."""
        if (file := self._list(name)) is not None:
            return ListFile(file, name, self.keys)
        shards = ShardFolder(self.path)
        return shards if shards.has(name) else None

    def _list(self, name: str) -> Path | None:
        """Find the split's list: a file of its name, with or without the ending.

        If there is also a folder of this name, a .txt file may be anything and is not considered.
        """
        endings = SUFFIXES[:-1] if (self.path / name).is_dir() else SUFFIXES
        files = [self.path / name] * is_list(Path(name)) + [self.path / f"{name}{ending}" for ending in endings]
        return next((file for file in files if file.is_file()), None)


def open_data(data: str | Path, keys: SourceKeys = AS_USUAL) -> Source:
    """Open the source that `data` names; docs/data.md lists what it may be.

    Args:
        data: The value of the key `data`.
        keys: Names of the splits, whether the validation split is held out, and columns and separator of lists.

    Raises:
        UserError: If it does not name a source.
    """
    source = _open(data, keys)
    if keys.val_share is None:
        return source
    whole = "." if isinstance(source, Directory) else None  # its subfolders
    return HeldOut(source, keys.train_split, keys.val_split, keys.val_share, whole)


def _open(data: str | Path, keys: SourceKeys) -> Source:
    text = os.fspath(data)
    path = Path(text)
    if path.is_dir():
        return Directory(path, keys)
    if is_list(path) and "{" not in text and "://" not in text:
        return ListFile(path, keys=keys, unsplit=None if keys.val_share is None else keys.train_split)
    _refuse_list_keys(keys, text)
    scheme, _, name = text.partition(":")
    if scheme in _SCHEMES:
        return _SCHEMES[scheme](name)
    if "{" in text or "://" in text or path.suffix == ".tar":
        return ShardPattern(text)
    if path.is_file():
        raise UserError(f"data: {path} is a file of another kind; {_OTHER_FILES.get(path.suffix.lower(), _FIX)}")
    return Directory(path, keys)


def _refuse_list_keys(keys: ListKeys, what: str) -> None:
    """Raise a UserError if columns or a separator are specified for something that is not a list."""
    given = [name for name, field in ListKeys.model_fields.items() if getattr(keys, name) != field.default]
    if given == ["multi_label"]:
        raise UserError(f"multi_label: {what} is not a list, and several labels per image are read from lists only")
    if given:
        raise UserError(f"{given[0]}: applies to lists only, and {what} is not a list; remove it, or set it to none")


def absolute(data: str) -> str:
    """Return the value of `data` with absolute paths, so that it works from any folder."""
    scheme, _, name = data.partition(":")
    if scheme == "torchvision":
        name, _, root = name.partition("@")
        return f"torchvision:{name}@{os.path.abspath(root)}" if root else data
    if scheme == "hf":
        return f"hf:{os.path.abspath(name)}" if os.path.isdir(name) else data
    return data if "://" in data else os.path.abspath(data)


def read_split(data: str | Path, name: str, keys: SourceKeys = AS_USUAL) -> Split:
    """Read a labelled split for evaluation: one class is enough, and classes may be without images.

    Raises:
        UserError: If there is no such split, or it has no images.
    """
    return open_data(data, keys).read(name)


def read_splits(data: str | Path, train: str, val: str, keys: SourceKeys = AS_USUAL) -> tuple[Split, Split]:
    """Read the training and the validation split, with the same classes in the same order.

    Raises:
        UserError: See `read_split`; also if one has fewer than two classes or a class without images, or if the two do
            not have the same classes.
    """
    source = open_data(data, keys)
    training = with_filled_classes(source.read(train))
    validation = source.read(val)
    if validation.sets is None:  # with several labels per image it may lack classes
        validation = with_filled_classes(validation)
    return training, same_classes(training, validation, (train, val))


def read_unlabelled(data: str | Path, name: str, keys: SourceKeys = AS_USUAL) -> Split:
    """Read the images of a split without labels.

    Raises:
        UserError: If there is no such split, or it has no images.
    """
    return open_data(data, keys).read(name, labelled=False)


def read_label_free(
    data: str | Path, train: str, val: str, unlabelled: str, keys: SourceKeys = AS_USUAL
) -> tuple[Split, Split]:
    """Read a training split without labels, and the validation split, which is empty if there is none.

    The training images are those of the split `train`, of `unlabelled`, or of both; of a folder without any split, all
    images in it.

    Raises:
        UserError: If both are missing, or one holds no image; see `read_split` for the validation split.
    """
    source = open_data(data, keys)
    there = [name for name in (train, unlabelled) if source.has(name)]
    if not there:
        is_flat = isinstance(source, Directory) and source.path.is_dir() and not source.has(val)
        there = ["."] if is_flat else [train]
    training = source.read(there[0], labelled=False)
    for name in there[1:]:
        training = join(training, source.read(name, labelled=False))
    if source.has(val):
        return training, source.read(val)
    return training, Split(Files(Path(data) / val, ()), np.empty(0, np.int32), ())
