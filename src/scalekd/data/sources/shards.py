"""WebDataset tar shards: indexed once, then read at random in place."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray

from scalekd.data.endings import is_hidden, is_image
from scalekd.data.names import Names
from scalekd.data.skipped_files import SkippedFiles
from scalekd.data.sources.downloads import fetch, fetch_if_there
from scalekd.data.sources.source import Labelling
from scalekd.data.sources.tarindex import read_index
from scalekd.data.split import Split
from scalekd.errors import UserError
from scalekd.progress import watched

_CLASSES = "classes.txt"
_PLACE = "{split}"
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shards:
    """Images in tar files; see `Store`.

    Attributes:
        root: The folder that holds all shards.
        names: For each image, its shard's path relative to `root` and its member's name.
        files: The shards.
        shard: `[n]`, the index in `files` of each image's shard.
        offsets: `[n]`, the byte offset of each image in its shard.
        sizes: `[n]`, the size of each image in bytes.
    """

    root: Path
    names: Sequence[str]
    files: tuple[Path, ...]
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def locate(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def open(self, index: int) -> io.BytesIO:
        with open(self.files[self.shard[index]], "rb") as file:
            file.seek(self.offsets[index])
            return io.BytesIO(file.read(self.sizes[index]))

    def size(self, index: int) -> int:
        return int(self.sizes[index])


class ShardFolder:
    """Shards in a folder, as `train/*.tar` or `train-0*.tar`; see `Source`.

    It has no split `train` if the folder `train` holds images or class folders.

    Args:
        folder: The folder; a `classes.txt` in it or next to the shards names the classes, one per line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return bool(self._shards(name))

    def read(self, name: str, *, labelled: bool = True) -> Split:
        shards = self._shards(name)
        candidates = [shards[0].parent / _CLASSES, self.folder / _CLASSES]
        return _read(shards, next((file for file in candidates if file.is_file()), None), labelled)

    def _shards(self, name: str) -> list[Path]:
        inside = _tars(self.folder / name)
        if inside is None:
            return []
        numbered = re.compile(re.escape(name) + r"-\d.*")
        return inside or [shard for shard in _tars(self.folder, at_top=True) or () if numbered.fullmatch(shard.name)]


def _tars(folder: Path, *, at_top: bool = False) -> list[Path] | None:
    """Return the shards in a folder, sorted; None if any image or folder is found (early exit).

    Args:
        folder: The folder of a split; need not exist.
        at_top: Whether it is the data's own folder, in which images and folders of other splits are allowed.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.name.endswith(".tar"):
                    found.append(folder / entry.name)
                elif not at_top and (is_image(entry.name) or entry.is_dir()):
                    return None
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


class ShardPattern:
    """Shards named by a pattern with braces, local or behind URLs; see `Source`.

    Args:
        pattern: For example `/data/{split}-{000000..000146}.tar`; `{split}` is replaced by the split's name, which may
            contain braces, too.
    """

    def __init__(self, pattern: str) -> None:
        if _PLACE not in pattern:
            raise UserError(
                f"data: {pattern} does not distinguish the splits; write {_PLACE} in place of the split's name"
            )
        self.pattern = pattern
        self.remote = "://" in pattern
        if self.remote and not pattern.startswith(("http://", "https://")):
            raise UserError(f"data: {pattern}: shards are read from files, http:// and https:// only")
        if self.remote and re.search(r"[?#].*[{}]", pattern):  # downloads are stored under the URL's path only
            raise UserError(f"data: {pattern}: braces are allowed in a URL's path only, not after ? or #")

    def has(self, name: str) -> bool:
        first = self._expand(name)[0]
        return fetch_if_there(first) is not None if self.remote else Path(first).is_file()

    def read(self, name: str, *, labelled: bool = True) -> Split:
        places = self._expand(name)
        listed = os.path.join(os.path.dirname(places[0]), _CLASSES)
        if self.remote:
            shards, classes = [fetch(url) for url in places], fetch_if_there(listed)
        else:
            shards, classes = [Path(place) for place in places], Path(listed)
        return _read(shards, classes if classes and classes.is_file() else None, labelled)

    def _expand(self, name: str) -> list[str]:
        if self.remote and re.search("[?#]", name):
            raise UserError(f"data: the split {name!r} is part of a URL's path; write it without ? and #")
        pattern = self.pattern.replace(_PLACE, name)
        try:
            ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"(-?\d+)\.\.(-?\d+)", pattern)]
            few = math.prod(ranges) <= _MOST_SHARDS  # braceexpand would hold a larger range in memory
            places = list(islice(braceexpand(pattern), _MOST_SHARDS + 1)) if few else []
        except ValueError:
            raise UserError(f"data: {pattern}: a brace is not closed, or not opened") from None
        if not 0 < len(places) <= _MOST_SHARDS:
            raise UserError(f"data: {pattern} names more than {_MOST_SHARDS:,} shards")
        return places


def _read(shards: Sequence[Path], classes: Path | None, labelled: bool) -> Split:
    """Read the images of all shards, in their order."""
    root = Path(os.path.commonpath([os.path.abspath(shard.parent) for shard in shards]))
    labels, indexes, skipped = Labelling(), [], SkippedFiles()
    for shard in watched(shards, "shards"):
        index = read_index(shard)
        indexes.append((os.path.relpath(shard, root), index))
        skipped = skipped.joined(index.skipped)
        for name, label in zip(index.names, index.labels, strict=True):
            labels.add(label, f"{shard}/{name}")
    lengths = [len(index.names) for _, index in indexes]
    store = Shards(
        root,
        Names.pack(f"{shard}/{name}" for shard, index in indexes for name in index.names),
        tuple(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), lengths),
        np.concatenate([index.offsets for _, index in indexes]),
        np.concatenate([index.sizes for _, index in indexes]),
    )
    return replace(labels.split(store, _class_names(classes), labelled=labelled), skipped=skipped)


def _class_names(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError:
        raise UserError(f"data: {file} is not text; it must hold the class names, one per line") from None
    if "" in names[:-1]:  # ambiguous: it may or may not count in the indices of the classes after it
        raise UserError(
            f"data: {file}: line {names.index('') + 1} is empty; it must hold the class names, one per line"
        )
    return [name for name in names if name]
