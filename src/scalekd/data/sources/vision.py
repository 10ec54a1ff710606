"""torchvision's image classification data sets."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision

from scalekd.data.sources.hub import RowNames
from scalekd.data.sources.source import Labelling
from scalekd.data.split import Split
from scalekd.data.user_cache import cache_folder
from scalekd.errors import UserError, did_you_mean, first_line
from scalekd.locks import alone

_HALVES = ("train", "test")
_THIRDS = ("train", "val", "test")
# The splits of each data set; those in _SWITCHED select them by the boolean argument `train`, the others by `split`.
_SETS: dict[str, tuple[str, ...]] = {
    "CIFAR10": _HALVES,
    "CIFAR100": _HALVES,
    "Country211": ("train", "valid", "test"),
    "DTD": _THIRDS,
    "FGVCAircraft": (*_THIRDS, "trainval"),
    "FashionMNIST": _HALVES,
    "Flowers102": _THIRDS,
    "Food101": _HALVES,
    "Imagenette": ("train", "val"),
    "KMNIST": _HALVES,
    "MNIST": _HALVES,
    "RenderedSST2": _THIRDS,
    "STL10": _HALVES,
    "SVHN": _HALVES,
    "USPS": _HALVES,
}
_SWITCHED = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
_IN_MEMORY = (*_SWITCHED, "STL10", "SVHN")
_OTHER_NAMES = {"val": ("valid", "test")}


@dataclass(frozen=True)
class Items:
    """Images of a torchvision data set; see `Store`.

    Attributes:
        root: The data set and its split, for messages.
        names: The images' names.
        items: The data set; its images are paths, or small images in memory.
    """

    root: Path
    names: Sequence[str]
    items: Any

    def locate(self, index: int) -> str:
        return f"{self.root}/{index}"

    def open(self, index: int) -> str | io.BytesIO:
        image = self.items[index][0]
        if isinstance(image, str | Path):
            return str(image)
        content = io.BytesIO()
        image.save(content, "PPM")  # lossless and uncompressed
        content.seek(0)
        return content

    def size(self, index: int) -> int:
        found = self.open(index)
        return Path(found).stat().st_size if isinstance(found, str) else found.getbuffer().nbytes


class VisionSource:
    """A torchvision data set, downloaded if it does not exist locally; see `Source`.

    Args:
        name: `NAME`, or `NAME@FOLDER` with the folder that torchvision calls `root`.
    """

    def __init__(self, name: str) -> None:
        self.name, _, folder = name.partition("@")
        if self.name not in _SETS:
            raise UserError(
                f"data: torchvision: no data set {self.name!r}{did_you_mean(self.name, _SETS)}; available are "
                f"{', '.join(_SETS)}"
            )
        self.folder = Path(folder) if folder else cache_folder("torchvision")

    def has(self, name: str) -> bool:
        return self._own(name) is not None

    def read(self, name: str, *, labelled: bool = True) -> Split:
        own = self._own(name)
        if own is None:
            raise UserError(
                f"data: torchvision:{self.name} has no split {name!r}; it has {', '.join(_SETS[self.name])}. "
                "Specify two different splits as train_split and val_split"
            )
        items = self._open(own)
        names = [_text(each) for each in getattr(items, "classes", ())]
        root = Path(f"torchvision:{self.name}/{own}")
        labels = Labelling()
        for index in range(len(items)):
            label = int(items[index][1])
            labels.add(label if names else str(label), str(index))
        return labels.split(Items(root, RowNames(str(root), len(items)), items), names, labelled=labelled)

    def _own(self, name: str) -> str | None:
        """Return the data set's own name for a split, or None if it has no such split."""
        known = _SETS[self.name]
        return next((each for each in (name, *_OTHER_NAMES.get(name, ())) if each in known), None)

    def _open(self, split: str) -> Any:
        kind = getattr(torchvision.datasets, self.name)
        args: dict[str, Any] = {"train": split == "train"} if self.name in _SWITCHED else {"split": split}
        if self.name not in _IN_MEMORY:
            args["loader"] = _as_path
        try:
            try:
                return kind(str(self.folder), **args)
            except (RuntimeError, FileNotFoundError):  # missing, or its checksums do not match
                with alone(self.folder):
                    return kind(str(self.folder), download=True, **args)
        except (RuntimeError, OSError) as error:
            place = f"torchvision:{self.name} is not in {self.folder}, or damaged there,"
            raise UserError(f"data: {place} and cannot be downloaded: {first_line(error)}") from None
        except (AssertionError, LookupError, ValueError, EOFError, struct.error) as error:
            place = f"torchvision:{self.name} is damaged in {self.folder}"
            raise UserError(f"data: {place}: {first_line(error)}; remove it there to download it again") from None


def _as_path(path: str) -> str:
    """Replace torchvision's image loader, so that images are decoded like those of any other source."""
    return path


def _text(name: Any) -> str:
    """Return a class name as text; Imagenette's are tuples of synonyms."""
    return str(name) if isinstance(name, str) else ", ".join(name)
