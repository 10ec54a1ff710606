"""Image folders: one folder a split, one folder a class; and folders of images without labels."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.errors import UserError, did_you_mean

UNLABELLED = -1


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        root: Its folder.
        paths: Image files, sorted by class and name.
        labels: Class index of each, -1 for an unlabelled one.
        classes: Class names, sorted; empty where no image is labelled.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return self.labels.count(UNLABELLED)

    def __add__(self, other: Split) -> Split:
        """These images and then those of an unlabelled split of the same data."""
        root = Path(os.path.commonpath([self.root, other.root]))
        return Split(root, self.paths + other.paths, self.labels + other.labels, self.classes)

    @property
    def fingerprint(self) -> str:
        """A digest of the images' relative paths and labels (not of their pixels), with their number."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{Path(path).relative_to(self.root)}\0{label}\n".encode(errors="surrogateescape"))
        return f"{len(self)} images, {digest.hexdigest()[:16]}"


def _folder(data: Path, name: str) -> Path:
    """`data/name`, which must be there."""
    if not data.is_dir():
        raise UserError(f"data: no such folder: {data}")
    root = data / name
    if not root.is_dir():
        found = sorted(p.name for p in data.iterdir() if p.is_dir())
        holds = f"it holds {', '.join(found[:5])}" if found else "it holds no folders"
        raise UserError(
            f"data: {data} has no folder {name!r}{did_you_mean(name, found)}; {holds}. "
            "Name the splits' folders with train_split and val_split"
        )
    return root


def read_split(data: Path, name: str) -> Split:
    """List `data/name/<class>/*`; files that are no images by their ending are left out.

    Raises:
        UserError: If the folder is missing, or holds fewer than two classes or no images in a class.
    """
    root = _folder(data, name)
    try:
        listing = ImageFolder(str(root), allow_empty=True)
    except FileNotFoundError:
        raise UserError(f"data: {root} is empty: it needs one folder of images a class") from None
    if len(listing.classes) < 2:
        raise UserError(f"data: {root} has one class, {listing.classes[0]!r}; at least two are needed")
    empty = sorted(set(listing.classes) - {listing.classes[label] for label in listing.targets})
    if empty:
        raise UserError(f"data: no images in {', '.join(str(root / name) for name in empty[:3])}")
    paths, labels = zip(*listing.samples, strict=True)
    return Split(root=root, paths=paths, labels=labels, classes=tuple(listing.classes))


def read_splits(data: Path, train: str, val: str) -> tuple[Split, Split]:
    """Both splits, with the same classes.

    Raises:
        UserError: See `read_split`; also if the two do not have the same class folders.
    """
    training, validation = read_split(data, train), read_split(data, val)
    for have, lack in ((training, validation), (validation, training)):
        extra = sorted(set(have.classes) - set(lack.classes))
        if extra:
            raise UserError(
                f"data: class folders differ: {', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''} "
                f"in {have.root} but not in {lack.root}"
            )
    return training, validation


def read_unlabelled(data: Path, name: str) -> Split:
    """List all images in `data/name` and the folders in it, none of them labelled.

    Raises:
        UserError: If the folder is missing or holds no image.
    """
    root = _folder(data, name)
    paths = sorted(
        os.path.join(folder, file)
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if file.lower().endswith(IMG_EXTENSIONS)
    )
    if not paths:
        raise UserError(f"data: no images in {root}")
    return Split(root=root, paths=tuple(paths), labels=(UNLABELLED,) * len(paths), classes=())


def read_label_free(data: Path, train: str, val: str, unlabelled: str) -> tuple[Split, Split]:
    """A training split without labels, and the validation split, which is empty where there is none.

    The training images are those of `data/train`, of `data/unlabelled`, or of both.

    Raises:
        UserError: If both are missing, or one holds no image; for the validation split see `read_split`.
    """
    there = [name for name in (train, unlabelled) if (data / name).is_dir()] or [train]
    training = read_unlabelled(data, there[0])
    for name in there[1:]:
        training = training + read_unlabelled(data, name)
    has_val = (data / val).is_dir()
    return training, read_split(data, val) if has_val else Split(root=data / val, paths=(), labels=(), classes=())
