"""The folder of one cache: a description, the listing of the images, and shards that are written atomically."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scalekd.atomic import write_bytes
from scalekd.data.cache.layout import Layout
from scalekd.errors import UserError
from scalekd.locks import leads_to, lock

DESCRIPTION = "cache.json"
LISTING = "images.txt.gz"
_CARD_KEY = "scalekd"
# Versions recorded to help find the cause of a difference; they are not part of the cache's identity.
_PACKAGES = ("scalekd", "torch", "torchvision", "timm", "pillow")


class Shard(NamedTuple):
    """Images `first` to `first + images - 1` of a view."""

    view: int
    number: int
    first: int
    images: int


@dataclass(frozen=True)
class TeacherCache:
    """A teacher's outputs for one or more views of the images of a data set.

    A view is an image under the augmentation of one epoch. Views can be added to a cache at any time.

    Attributes:
        path: The cache's folder.
        images: Number of images in the data.
        layout: How an image's outputs are stored.
    """

    path: Path
    images: int
    layout: Layout

    @property
    def exists(self) -> bool:
        """Whether the cache has been begun."""
        return (self.path / DESCRIPTION).is_file()

    def shards(self, views: int) -> list[Shard]:
        """Return all shards of the first `views` views."""
        size = self.layout.images_per_shard
        parts = [(first, min(size, self.images - first)) for first in range(0, self.images, size)]
        return [Shard(view, number, *part) for view in range(views) for number, part in enumerate(parts)]

    def file(self, shard: Shard) -> Path:
        """Return a shard's path, whether or not it exists."""
        return self.path / f"view-{shard.view:03}" / f"{shard.number:05}.safetensors"

    def missing(self, views: int) -> list[Shard]:
        """Return the shards that do not exist."""
        return [shard for shard in self.shards(views) if not self.file(shard).is_file()]

    def faulty(self, views: int) -> dict[Shard, str]:
        """Return the shards with a wrong size or header, each with the fault; the values are not read."""
        found = {s: self._fault(s) for s in self.shards(views) if self.file(s).is_file()}
        return {shard: fault for shard, fault in found.items() if fault}

    def _card(self, shard: Shard) -> str:
        return json.dumps({"cache": self.path.name} | shard._asdict())

    def _fault(self, shard: Shard) -> str | None:
        try:
            with safe_open(self.file(shard), framework="pt") as file:
                card = (file.metadata() or {}).get(_CARD_KEY)
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            return f"is truncated or damaged ({error})"
        if card != self._card(shard) or shapes != self.layout.shapes(shard.view, shard.first, shard.images):
            return "belongs to another cache or place"
        return None

    def create(self, ingredients: dict[str, Any], listing: str) -> None:
        """Create the folder and write the description and the listing; may be called again."""
        self.path.mkdir(parents=True, exist_ok=True)
        about = {"ingredients": ingredients, "made with": {name: metadata.version(name) for name in _PACKAGES}}
        text = listing.encode(errors="surrogateescape")
        write_bytes(self.path / LISTING, gzip.compress(text, mtime=0), concurrently=True)
        if not self.exists:  # its versions are those that the first shards were made with
            write_bytes(self.path / DESCRIPTION, json.dumps(about, indent=2).encode(), concurrently=True)
        for left in self.path.glob("view-*/*.lock"):  # by a process that was killed when its shard was written
            if left.with_suffix(".safetensors").is_file():
                left.unlink(missing_ok=True)

    def write(self, shard: Shard, tensors: dict[str, Tensor]) -> None:
        """Write a shard; the caller must hold its claim.

        Raises:
            OSError: If it cannot be written, for example because the disk is full; no partial file remains.
        """
        # One metadata key only: safetensors writes several in random order.
        write_bytes(self.file(shard), save(tensors, metadata={_CARD_KEY: self._card(shard)}))

    @contextmanager
    def claim(self, shard: Shard, *, wait: bool = False) -> Iterator[bool]:
        """Claim a shard, so that no other process writes it. The system releases the claim of a process that dies.

        Args:
            shard: The shard to claim.
            wait: Whether to wait if another process holds it.

        Yields:
            True if the caller is to write the shard; False if another process holds it or it exists by now.

        Raises:
            UserError: If the file system has no locks.
        """
        path = self.file(shard).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                ours = lock(file, wait=wait) and leads_to(path, file)
            except OSError as error:
                raise UserError(
                    f"cache: {path} cannot be locked ({error.strerror}); put --cache on a file system with locks"
                ) from error
            if not ours:
                yield False
                return
            try:
                yield not self.file(shard).is_file()
            finally:
                path.unlink(missing_ok=True)

    def bytes_missing(self, views: int) -> int:
        """Return the bytes that the missing shards will take."""
        return sum(shard.images for shard in self.missing(views)) * self.layout.bytes_per_image

    def bytes_free(self) -> int:
        """Return the free bytes on the disk."""
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.is_dir())
        return shutil.disk_usage(there).free

    def check_space(self, views: int) -> None:
        """Check that the missing shards fit on the disk.

        Raises:
            UserError: If they do not; the message says how many bytes are lacking.
        """
        lacking = self.bytes_missing(views) - self.bytes_free()
        if lacking > 0:
            raise UserError(
                f"cache: the disk of {self.path.parent} lacks {size(lacking)} for {views} view(s); free the space, or "
                "use fewer views (augmentation_epochs) or cache_format int8. Shards already written are kept"
            )


def size(count: int) -> str:
    """Format a number of bytes for humans, as `1.5 GB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min((len(str(count)) - 1) // 3, len(units) - 1)
    return f"{count / 1000**power:.4g} {units[power]}"
