"""What is in a folder of images: listed once, then read from an index that is kept in the user's cache.

An index is trusted while every folder that was listed has the times of change that it had then. A folder that changed
just before it was listed may change again within the same tick of its clock, so that nobody could tell; its index is
not kept. Not noticed is only what changes no folder: another kind of thing behind a link that has an image's name.
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
from scalekd.data.aside import Aside
from scalekd.data.endings import image_endings, is_hidden, is_image
from scalekd.data.names import Names
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
        names: Their paths in it.
        labels: Class index of each `[n]`, -1 for an unlabelled one.
        classes: Class names.
        aside: What is there beside them.
    """

    names: Names
    labels: Labels
    classes: tuple[str, ...]
    aside: Aside = field(default_factory=Aside)


def list_classes(root: Path) -> Listing:
    """Images in folders of `root`, one a class, and in the folders in them; in torchvision's order.

    Hidden files and folders are none of them.

    Raises:
        OSError: If `root` cannot be listed.
    """
    return _indexed(root, "classes", _walk_classes)


def list_unlabelled(root: Path) -> Listing:
    """All images in `root` and the folders in it, sorted.

    Raises:
        OSError: If `root` cannot be listed.
    """
    return _indexed(root, "unlabelled", _walk_all)


class _Walk:
    """Lists folders, given as paths in `root`, and notes how each was before.

    Attributes:
        aside: What is no image.
        times: By folder, its times of change; for a link that leads to no folder, that it did not.
        complete: Whether all could be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.started = root, time.time_ns()
        self.times: dict[str, tuple[int, int]] = {}
        self.complete, self.aside = True, Aside()

    def read(self, folder: str) -> tuple[list[str], list[str]]:
        """The folders and the images in a folder, hidden ones left out, in no order; links are followed."""
        folders: list[str] = []
        images: list[str] = []
        self.times[folder] = _times(self.root, folder)
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                is_folder = _is_folder(entry)
                if is_hidden(entry.name):
                    self.aside.hide(path, folder=is_folder)
                elif is_folder:
                    folders.append(entry.name)
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    self.aside.leave_out(path)
                    if entry.is_symlink():
                        self.times[path] = _NO_FOLDER
        return folders, images

    def images(self, top: str) -> Iterator[tuple[str, list[str]]]:
        """Each folder in `top`, itself included, and the images in it.

        What may not be listed is left out, and links to a folder that they are in, which would have no end.
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
        """Whether any later change would be seen."""
        return self.complete and max(map(max, self.times.values())) < self.started - _TICK


def _walk_classes(walk: _Walk) -> Listing:
    folders, beside = walk.read("")
    for image in beside:
        walk.aside.leave_out(image, "beside the classes' folders")
    classes = sorted(folders)
    counts = np.zeros(len(classes), np.int64)

    def paths() -> Iterator[str]:
        for label, name in enumerate(classes):
            folders = sorted((folder, sorted(images)) for folder, images in walk.images(name))
            yield from (os.path.join(folder, image) for folder, images in folders for image in images)
            counts[label] = sum(len(images) for _, images in folders)

    names = Names.pack(paths())
    walk.aside.empty += [name for name, count in zip(classes, counts, strict=True) if not count]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Listing(names, labels, tuple(classes), walk.aside)


def _walk_all(walk: _Walk) -> Listing:
    paths = sorted(os.path.join(folder, image) for folder, images in walk.images("") for image in images)
    return Listing(Names.pack(paths), np.full(len(paths), UNLABELLED, np.int32), (), walk.aside)


def _indexed(root: Path, kind: str, list_anew: Callable[[_Walk], Listing]) -> Listing:
    """The listing in the index where that can be trusted, or a new one."""
    file = _file(root, kind)
    known = _load(file, root)
    if known is not None:
        return known
    walk = _Walk(root)
    with working(f"listing the images of {printable(root)}"):
        listing = list_anew(walk)
    if walk.settled and file.is_absolute():
        _save(file, listing, walk.times)
        return _load(file, root) or listing  # from the file, which processes share
    return listing


def _file(root: Path, kind: str) -> Path:
    what = f"{kind}\0{sorted(image_endings())}\0{os.path.abspath(root)}"  # an extra may add endings
    digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()
    return cache_folder("index", f"{digest[:32]}.safetensors")


def _load(file: Path, root: Path) -> Listing | None:
    """The listing in an index, mapped into memory; None where there is none, it is damaged, or a folder changed."""
    try:
        with safe_open(file, "pt") as index:  # torch's form maps the file, numpy's copies it
            arrays = {name: index.get_tensor(name).numpy() for name in index.keys()}  # noqa: SIM118  # it is no dict
            checksum = (index.metadata() or {}).get("checksum")
    except (OSError, RuntimeError, SafetensorError):  # torch's error, where the file goes while it is opened
        return None
    if checksum != _checksum(arrays):
        return None
    folders = _unpack(arrays, "folders")
    if any(tuple(then) != _times(root, folder) for folder, then in zip(folders, arrays["times"].tolist(), strict=True)):
        return None
    aside = Aside.load(arrays["aside"].tobytes().decode())
    return Listing(_unpack(arrays, "names"), arrays["labels"], tuple(_unpack(arrays, "classes")), aside)


def _save(file: Path, listing: Listing, times: dict[str, tuple[int, int]]) -> None:
    """Write an index, whole or not at all; where that is not possible, say so and go on."""
    arrays: Arrays = {"labels": listing.labels, "times": np.array(list(times.values()), np.int64)}
    arrays["aside"] = np.frombuffer(listing.aside.dump().encode(), np.uint8)
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
        f"warning: no index of the images is kept, each start lists them anew: {folder}: {reason}"
    )


def _unpack(arrays: Arrays, key: str) -> Names:
    return Names(arrays[f"{key}.text"], arrays[f"{key}.bounds"])


def _checksum(arrays: Arrays) -> str:
    total = _FORMAT
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _times(root: Path, folder: str) -> tuple[int, int]:
    """When a folder's content and the folder itself changed, in nanoseconds."""
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
