"""Image folders: one folder a split, one folder a class; and folders of images without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.names import Names
from scalekd.data.split import UNLABELLED, Files, Split
from scalekd.errors import UserError, did_you_mean


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


def _files(root: Path, paths: Iterable[str]) -> Files:
    return Files(root, Names.pack(os.path.relpath(path, root) for path in paths))


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
    return Split(_files(root, paths), np.array(labels, np.int32), tuple(listing.classes))


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
    return Split(_files(root, paths), np.full(len(paths), UNLABELLED, np.int32), ())
