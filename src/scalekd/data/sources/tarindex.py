"""Index of a tar shard: built once, kept on disk, and rebuilt when the shard's size or times change."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalekd.atomic import replacing
from scalekd.data.endings import image_endings, is_hidden, is_image
from scalekd.data.skipped_files import SkippedFiles
from scalekd.data.sources.source import escapes, label_text, parse_json
from scalekd.data.user_cache import cache_folder
from scalekd.errors import UserError

_FORMAT = 3
_BLOCK = 512
_LARGEST_LABEL = 1 << 20


class ShardIndex(NamedTuple):
    """The samples of a shard, in its order.

    Attributes:
        names: Member names of the images.
        labels: Their labels as text, None if there is none.
        offsets: The byte offset of each image in the shard, `[n]` int64.
        sizes: The size of each image in bytes, `[n]` int64.
        skipped: Members that are neither image nor label.
    """

    names: list[str]
    labels: list[str | None]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    skipped: SkippedFiles


def read_index(shard: Path) -> ShardIndex:
    """Return the index of a shard, from disk if it is still valid.

    Raises:
        UserError: If the shard is missing, corrupt, compressed, or has a member that is not allowed; names the member.
    """
    try:
        found = shard.stat()
    except FileNotFoundError:
        raise UserError(f"data: shard {shard} is missing") from None
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
        raise UserError(f"data: shard {shard} is not a regular file")
    endings = zlib.crc32(repr(sorted(image_endings())).encode())  # optional dependencies may add endings
    stamp = [_FORMAT, endings, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    kept = cache_folder("indexes", hashlib.sha256(os.fsencode(os.path.realpath(shard))).hexdigest()[:32] + ".npz")
    with suppress(Exception), np.load(kept) as arrays:  # a corrupt file may raise nearly any exception
        if arrays["stamp"].tolist() == stamp:
            names, labels, skipped = json.loads(arrays["text"].tobytes())
            return ShardIndex(names, labels, arrays["offsets"], arrays["sizes"], SkippedFiles.load(skipped))
    index = _index(shard, found.st_size)
    with suppress(OSError):  # an index that cannot be saved is rebuilt next time
        _keep(kept, stamp, index)
    return index


def _keep(file: Path, stamp: list[int], index: ShardIndex) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = np.frombuffer(json.dumps([index.names, index.labels, index.skipped.dump()]).encode(), np.uint8)
    with replacing(file, concurrently=True) as partial, partial.open("wb") as out:
        np.savez(out, stamp=np.array(stamp), text=text, offsets=index.offsets, sizes=index.sizes)


class _Header(tarfile.TarInfo):
    """A header that rejects negative sizes, on which tarfile would loop forever."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.HeaderError("negative size")
        return -(-count // _BLOCK) * _BLOCK


def _index(shard: Path, size: int) -> ShardIndex:
    with open(shard, "rb") as file:
        members = _Members(shard, file)
        for member in _members(shard, size):
            if member.isfile():
                members.add(member)
        samples = members.samples()
    if not samples:
        found = members.skipped.described()
        raise UserError(f"data: shard {shard} holds no images{f' ({found})' if found else ''}")
    return ShardIndex(
        [image.name for image, _ in samples],
        [label for _, label in samples],
        np.array([image.offset_data for image, _ in samples], np.int64),
        np.array([image.size for image, _ in samples], np.int64),
        members.skipped,
    )


class _Members:
    """Collects the images and labels of a shard, and matches them to samples once all are known.

    In WebDataset, a sample's key is the part of its members' names before the first dot, but names of photographs may
    contain further dots. An image therefore belongs to the longest prefix of its name, cut at a dot, that has a label.

    Attributes:
        skipped: Members that are neither image nor label.
    """

    def __init__(self, shard: Path, file: IO[bytes]) -> None:
        self.shard, self.file, self.skipped = shard, file, SkippedFiles()
        self._images: dict[str, tarfile.TarInfo] = {}  # by path without the last ending; labels likewise
        self._labels: dict[str, dict[str, tarfile.TarInfo]] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Add a member of the shard that is a file."""
        key, after = os.path.splitext(member.name)
        kind = after[1:].lower()
        if any(is_hidden(part) for part in Path(member.name).parts):
            self.skipped.hide(member.name, folder=False)
        elif is_image(member.name):
            if key in self._images:
                raise self._two_images(self._images[key], member)
            self._images[key] = member
        elif kind in ("cls", "json"):
            labels = self._labels.setdefault(key, {})
            if kind in labels:
                raise UserError(f"data: shard {self.shard}: {member.name!r} is a second label of the same sample")
            labels[kind] = member
        else:
            self.skipped.leave_out(member.name)

    def samples(self) -> list[tuple[tarfile.TarInfo, str | None]]:
        """Return the image of each sample, in the shard's order, and its label, if any."""
        found: dict[str, tuple[tarfile.TarInfo, str | None]] = {}
        for key, image in self._images.items():
            beginnings = _beginnings(key)
            own = next((each for each in beginnings if self._has_label(each, dotted=each != beginnings[-1])), None)
            if own is None:
                own = next((each for each in beginnings[1:] if each in self._images), key)
            if own != key and own in self._images:
                self.skipped.leave_out(image.name, "additional images of a sample")
                continue
            if own in found:
                raise self._two_images(found[own][0], image)
            found[own] = image, self._label(own)
        for key, labels in self._labels.items():
            if "cls" in labels and not any(each in found for each in _beginnings(key)):
                raise UserError(f"data: shard {self.shard}: sample {key!r} has a label but no image")
        return list(found.values())

    def _has_label(self, key: str, *, dotted: bool) -> bool:
        """Whether there is a label for this key; a dotted JSON file (`a.box.json` for `a.jpg`) must contain one."""
        labels = self._labels.get(key, {})
        if "cls" in labels or not dotted:
            return bool(labels)
        try:
            return bool(labels and self._read(labels["json"]))
        except UserError:
            return False

    def _label(self, key: str) -> str | None:
        texts = {kind: self._read(member) for kind, member in self._labels.get(key, {}).items()}
        return texts.get("cls") or texts.get("json") or None

    def _read(self, member: tarfile.TarInfo) -> str:
        if member.size > _LARGEST_LABEL:
            raise UserError(f"data: shard {self.shard}: {member.name!r} has {member.size} bytes, too many for a label")
        self.file.seek(member.offset_data)
        return _label(self.shard, member.name, self.file.read(member.size))

    def _two_images(self, one: tarfile.TarInfo, other: tarfile.TarInfo) -> UserError:
        return UserError(f"data: shard {self.shard}: {one.name!r} and {other.name!r} are images of the same sample")


def _beginnings(key: str) -> list[str]:
    """Return a path and its prefixes, with the name cut at each dot from the end: `a/b.c.d`, `a/b.c`, `a/b`."""
    folder, name = os.path.split(key)
    parts = name.split(".")
    return [os.path.join(folder, ".".join(parts[:count])) for count in range(len(parts), 0, -1)]


def _members(shard: Path, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files and folders of a shard.

    Raises:
        UserError: If the shard has any other kind of member, leads out of its folder, is corrupt or truncated.
    """
    try:
        with tarfile.open(shard, "r:", tarinfo=_Header, errors="surrogateescape") as tar:
            end = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps all of them in memory
                if escapes(member.name):
                    raise UserError(
                        f"data: shard {shard}: {member.name!r} leads out of it; create the shard again without it"
                    )
                if not (member.isdir() or (member.isfile() and not member.issparse())):
                    kind = "link" if member.issym() or member.islnk() else "device or other special file"
                    raise UserError(
                        f"data: shard {shard}: {member.name!r} is a {kind}; create the shard again with plain files"
                    )
                end = member.offset_data + (member.size if member.isfile() else 0)
                if member.size < 0 or end > size:
                    raise UserError(f"data: shard {shard} is truncated in {member.name!r}; download or create it again")
                yield member
        with open(shard, "rb") as file:
            file.seek(-(-end // _BLOCK) * _BLOCK)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise UserError(
                    f"data: shard {shard} is truncated or damaged after {end} bytes; download or create it again"
                )
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise UserError(f"data: shard {shard} is not an intact, uncompressed tar file: {error}") from None


def _label(shard: Path, name: str, content: bytes) -> str:
    """Parse the label in a `.cls` or `.json` member; empty if the JSON has none."""
    try:
        text = content.decode().strip()
        if name.lower().endswith(".json"):
            entries = parse_json(text)
            value = entries.get("label", entries.get("cls")) if isinstance(entries, dict) else None
            return label_text(value) or ""
        return str(int(text)) if text.isdecimal() else text
    except (ValueError, RecursionError) as error:
        raise UserError(f"data: shard {shard}: {name!r} holds no label: {' '.join(str(error).split())}") from None
