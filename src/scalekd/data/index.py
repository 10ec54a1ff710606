"""List the images in a folder once, then read the listing from an index in the user's cache folder.

An index is valid while every listed folder still has the modification times that it had when it was listed. If a folder
changed just before it was listed, it may change again within the same tick of the file system's clock, which could not
be detected; such an index is not kept. The only undetected change is one that modifies no folder: the target of a link
with an image's name becomes another kind of file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scalekd.atomic import replacing
from scalekd.data.endings import image_endings, is_hidden, is_image
from scalekd.data.names import Names
from scalekd.data.skipped_files import SkippedFiles
from scalekd.data.split import UNLABELLED, Labels
from scalekd.data.user_cache import cache_folder
from scalekd.errors import printable
from scalekd.progress import working

Arrays = dict[str, NDArray[Any]]

_FORMAT = 2
_TICK = 2 * 10**9  # nanoseconds; the coarsest clock of a file system
_NO_FOLDER = (-1, -1)


@dataclass(frozen=True, eq=False)
class Listing:
    """The images in a folder.

    Attributes:
        names: Their paths relative to the folder.
        labels: Class index of each image `[n]`, -1 if unlabelled.
        classes: Class names.
        skipped: The files and folders that were skipped.
    """

    names: Names
    labels: Labels
    classes: tuple[str, ...]
    skipped: SkippedFiles = field(default_factory=SkippedFiles)


def list_classes(root: Path) -> Listing:
    """List the images in the class folders of `root` and their subfolders, in torchvision's order.

    Hidden files and folders are skipped.

    Raises:
        OSError: If `root` cannot be listed.
    """
    return _indexed(root, "classes", _walk_classes)


def list_unlabelled(root: Path) -> Listing:
    """List all images in `root` and its subfolders, sorted.

    Raises:
        OSError: If `root` cannot be listed.
    """
    return _indexed(root, "unlabelled", _walk_all)


class _Walk:
    """Lists folders, given as paths relative to `root`, and records their modification times before listing.

    Attributes:
        skipped: The files and folders that were skipped.
        times: Modification times by folder; a skipped link that does not lead to a folder has `_NO_FOLDER`.
        complete: Whether every folder could be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.started = root, time.time_ns()
        self.times: dict[str, tuple[int, int]] = {}
        self.complete, self.skipped = True, SkippedFiles()

    def read(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and images in a folder, without hidden ones, unsorted; follows links."""
        folders: list[str] = []
        images: list[str] = []
        self.times[folder] = _times(self.root, folder)
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                is_folder = _is_folder(entry)
                if is_hidden(entry.name):
                    self.skipped.hide(path, folder=is_folder)
                elif is_folder:
                    folders.append(entry.name)
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    self.skipped.leave_out(path)
                    if entry.is_symlink():
                        self.times[path] = _NO_FOLDER
        return folders, images

    def images(self, top: str) -> Iterator[tuple[str, list[str]]]:
        """Yield `top` and each folder below it, with the names of the images in it.

        Skips folders that cannot be listed, and links to a folder above them, which would recurse forever.
        """
        pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
        while pending:
            folder, above = pending.pop()
            try:
                status = os.stat(os.path.join(self.root, folder))
                own = status.st_dev, status.st_ino
                if own in above:
                    continue
                folders, images = self.read(folder)
            except (PermissionError, FileNotFoundError, NotADirectoryError):
                if not folder:
                    raise
                self.complete = False
                continue
            pending += [(os.path.join(folder, name), above | {own}) for name in folders]
            yield folder, images

    @property
    def settled(self) -> bool:
        """Whether any later change would be detected."""
        return self.complete and max(map(max, self.times.values())) < self.started - _TICK


def _walk_classes(walk: _Walk) -> Listing:
    folders, stray = walk.read("")
    for image in stray:
        walk.skipped.leave_out(image, "outside the class folders")
    classes = sorted(folders)
    counts = np.zeros(len(classes), np.int64)

    def paths() -> Iterator[str]:
        for label, name in enumerate(classes):
            folders = sorted((folder, sorted(images)) for folder, images in walk.images(name))
            yield from (os.path.join(folder, image) for folder, images in folders for image in images)
            counts[label] = sum(len(images) for _, images in folders)

    names = Names.pack(paths())
    walk.skipped.empty += [name for name, count in zip(classes, counts, strict=True) if not count]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Listing(names, labels, tuple(classes), walk.skipped)


def _walk_all(walk: _Walk) -> Listing:
    paths = sorted(os.path.join(folder, image) for folder, images in walk.images("") for image in images)
    return Listing(Names.pack(paths), np.full(len(paths), UNLABELLED, np.int32), (), walk.skipped)


def _indexed(root: Path, kind: str, walk_folders: Callable[[_Walk], Listing]) -> Listing:
    """Return the listing from the index if it is still valid, otherwise a new one."""
    file = _file(root, kind)
    known = _load(file, root)
    if known is not None:
        return known
    walk = _Walk(root)
    with working(f"listing the images of {printable(root)}"):
        listing = walk_folders(walk)
    if walk.settled and file.is_absolute():
        _save(file, listing, walk.times)
        return _load(file, root) or listing  # memory-mapped from the file, so that processes share it
    return listing


def _file(root: Path, kind: str) -> Path:
    what = f"{kind}\0{sorted(image_endings())}\0{os.path.abspath(root)}"  # optional dependencies may add endings
    digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()
    return cache_folder("index", f"{digest[:32]}.safetensors")


def _load(file: Path, root: Path) -> Listing | None:
    """Memory-map the listing in an index; None if there is no index, it is corrupt, or a folder changed."""
    try:
        with safe_open(file, "pt") as index:  # the torch interface maps the file, the numpy one copies it
            arrays = {name: index.get_tensor(name).numpy() for name in index.keys()}  # noqa: SIM118  # not a dict
            checksum = (index.metadata() or {}).get("checksum")
    except (OSError, RuntimeError, SafetensorError):  # torch raises RuntimeError if the file vanishes while opening
        return None
    if checksum != _checksum(arrays):
        return None
    folders = _unpack(arrays, "folders")
    if any(tuple(then) != _times(root, folder) for folder, then in zip(folders, arrays["times"].tolist(), strict=True)):
        return None
    skipped = SkippedFiles.load(arrays["aside"].tobytes().decode())
    return Listing(_unpack(arrays, "names"), arrays["labels"], tuple(_unpack(arrays, "classes")), skipped)


def _save(file: Path, listing: Listing, times: dict[str, tuple[int, int]]) -> None:
    """Write an index atomically; if that is not possible, warn and continue."""
    arrays: Arrays = {"labels": listing.labels, "times": np.array(list(times.values()), np.int64)}
    arrays["aside"] = np.frombuffer(listing.skipped.dump().encode(), np.uint8)
    for key, names in (
        ("names", listing.names),
        ("classes", Names.pack(listing.classes)),
        ("folders", Names.pack(times)),
    ):
        arrays |= {f"{key}.text": names.text, f"{key}.bounds": names.bounds}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, concurrently=True) as partial:
            save_file(arrays, partial, metadata={"checksum": _checksum(arrays)})
    except (OSError, SafetensorError) as error:
        _warn(file.parent, str(error))


@cache
def _warn(folder: Path, reason: str) -> None:
    logging.getLogger(__name__).warning(
        f"warning: no index of the images is kept, every start lists them again: {folder}: {reason}"
    )


def _unpack(arrays: Arrays, key: str) -> Names:
    return Names(arrays[f"{key}.text"], arrays[f"{key}.bounds"])


def _checksum(arrays: Arrays) -> str:
    total = _FORMAT
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _times(root: Path, folder: str) -> tuple[int, int]:
    """Return a folder's mtime and ctime in nanoseconds; `_NO_FOLDER` if it is not a folder."""
    try:
        status = os.stat(os.path.join(root, folder))
    except OSError:
        return _NO_FOLDER
    return (status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISDIR(status.st_mode) else _NO_FOLDER


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
