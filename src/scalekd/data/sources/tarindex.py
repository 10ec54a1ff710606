"""What is where in a tar shard: read once, kept on disk, and read again when the shard's size or time changes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.sources.places import cache_folder
from scalekd.data.sources.source import escapes, label_text, parse_json
from scalekd.errors import UserError

_FORMAT = 2
_BLOCK = 512
_LARGEST_LABEL = 1 << 20


class ShardIndex(NamedTuple):
    """The samples of a shard, in its order.

    Attributes:
        names: Member names of the images.
        labels: Their labels as text, None where there is none.
        offsets: Where each image's bytes begin in the shard, `[n]` int64.
        sizes: How many there are, `[n]` int64.
    """

    names: list[str]
    labels: list[str | None]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def read_index(shard: Path) -> ShardIndex:
    """The index of a shard, from disk where it still holds.

    Raises:
        UserError: If the shard is missing, damaged, compressed, or holds what it must not; names the entry.
    """
    try:
        found = shard.stat()
    except FileNotFoundError:
        raise UserError(f"data: shard {shard} is missing") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise UserError(f"data: shard {shard} is no regular file")
    stamp = [_FORMAT, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    kept = cache_folder("indexes", hashlib.sha256(os.fsencode(os.path.realpath(shard))).hexdigest()[:32] + ".npz")
    with suppress(Exception), np.load(kept) as arrays:  # a damaged one fails in nearly any way
        if arrays["stamp"].tolist() == stamp:
            names, labels = json.loads(arrays["text"].tobytes())
            return ShardIndex(names, labels, arrays["offsets"], arrays["sizes"])
    index = _index(shard, found.st_size)
    with suppress(OSError):  # an index that cannot be kept is made again
        _keep(kept, stamp, index)
    return index


def _keep(file: Path, stamp: list[int], index: ShardIndex) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial.npz")
    text = np.frombuffer(json.dumps([index.names, index.labels]).encode(), np.uint8)
    try:
        np.savez(partial, stamp=np.array(stamp), text=text, offsets=index.offsets, sizes=index.sizes)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


class _Header(tarfile.TarInfo):
    """A header whose sizes must not be negative: on those tarfile would go round in circles."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.HeaderError("negative size")
        return -(-count // _BLOCK) * _BLOCK


@dataclass
class _Sample:
    image: tuple[str, int, int] | None = None
    labels: dict[str, str] = field(default_factory=dict)


def _index(shard: Path, size: int) -> ShardIndex:
    samples: dict[str, _Sample] = {}
    with open(shard, "rb") as file:
        for member in _members(shard, size):
            folder, name = os.path.split(member.name)
            stem, _, ending = name.partition(".")
            ending = ending.lower()
            if not stem or not member.isfile():  # hidden files, as those of macOS
                continue
            sample = samples.setdefault(os.path.join(folder, stem), _Sample())
            if f".{ending}" in IMG_EXTENSIONS:
                if sample.image is not None:
                    raise UserError(f"data: shard {shard}: {sample.image[0]!r} and {member.name!r} are one sample")
                sample.image = (member.name, member.offset_data, member.size)
            elif ending in ("cls", "json"):
                if ending in sample.labels:
                    raise UserError(f"data: shard {shard}: {member.name!r} is another label of one sample")
                if member.size > _LARGEST_LABEL:
                    raise UserError(
                        f"data: shard {shard}: {member.name!r} has {member.size} bytes, too many for a label"
                    )
                file.seek(member.offset_data)
                sample.labels[ending] = _label(shard, member.name, file.read(member.size))
    lone = next((key for key, sample in samples.items() if sample.image is None and "cls" in sample.labels), None)
    if lone is not None:
        raise UserError(f"data: shard {shard}: sample {lone!r} has a label but no image")
    whole = [(sample.image, sample.labels) for sample in samples.values() if sample.image is not None]
    if not whole:
        raise UserError(f"data: shard {shard} holds no images")
    return ShardIndex(
        [image[0] for image, _ in whole],
        [labels.get("cls") or labels.get("json") or None for _, labels in whole],
        np.array([image[1] for image, _ in whole], np.int64),
        np.array([image[2] for image, _ in whole], np.int64),
    )


def _members(shard: Path, size: int) -> Iterator[tarfile.TarInfo]:
    """The files and folders of a shard; anything else in it, or an end that is missing, is an error."""
    try:
        with tarfile.open(shard, "r:", tarinfo=_Header, errors="surrogateescape") as tar:
            end = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them
                if escapes(member.name):
                    raise UserError(f"data: shard {shard}: {member.name!r} leads out of it; make it anew without")
                if not (member.isdir() or (member.isfile() and not member.issparse())):
                    kind = "link" if member.issym() or member.islnk() else "device or other special file"
                    raise UserError(f"data: shard {shard}: {member.name!r} is a {kind}; make it anew with plain files")
                end = member.offset_data + (member.size if member.isfile() else 0)
                if member.size < 0 or end > size:
                    raise UserError(f"data: shard {shard} is truncated in {member.name!r}; download or make it anew")
                yield member
        with open(shard, "rb") as file:
            file.seek(-(-end // _BLOCK) * _BLOCK)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise UserError(
                    f"data: shard {shard} is truncated or damaged after {end} bytes; download or make it anew"
                )
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise UserError(f"data: shard {shard} is no whole, uncompressed tar file: {error}") from None


def _label(shard: Path, name: str, content: bytes) -> str:
    """The label in a `.cls` or `.json` member; empty where JSON has none."""
    try:
        text = content.decode().strip()
        if name.lower().endswith(".json"):
            entries = parse_json(text)
            value = entries.get("label", entries.get("cls")) if isinstance(entries, dict) else None
            return label_text(value) or ""
        return str(int(text)) if text.isdecimal() else text
    except (ValueError, RecursionError) as error:
        raise UserError(f"data: shard {shard}: {name!r} holds no label: {' '.join(str(error).split())}") from None
