"""Image folders: one folder a split, one folder a class; and folders of images without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from scalekd.data.index import list_classes, list_unlabelled
from scalekd.data.names import Names
from scalekd.data.split import Files, Split
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


def read_split(data: Path, name: str) -> Split:
    """List `data/name/<class>/*`; files that are no images by their ending are left out.

    Raises:
        UserError: If the folder is missing, or holds fewer than two classes or no images in a class.
    """
    root = _folder(data, name)
    listing = list_classes(root)
    if not listing.classes:
        raise UserError(f"data: {root} is empty: it needs one folder of images a class")
    if len(listing.classes) < 2:
        raise UserError(f"data: {root} has one class, {listing.classes[0]!r}; at least two are needed")
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    empty = [listing.classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(f"data: no images in {', '.join(str(root / name) for name in empty[:3])}")
    return Split(Files(root, listing.names), listing.labels, listing.classes)


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
    listing = list_unlabelled(root)
    if not len(listing.names):
        raise UserError(f"data: no images in {root}")
    return Split(Files(root, listing.names), listing.labels, listing.classes)


def read_label_free(data: Path, train: str, val: str, unlabelled: str) -> tuple[Split, Split]:
    """A training split without labels, and the validation split, which is empty where there is none.

    The training images are those of `data/train`, of `data/unlabelled`, or of both.

    Raises:
        UserError: If both are missing, or one holds no image; for the validation split see `read_split`.
    """
    there = [name for name in (train, unlabelled) if (data / name).is_dir()] or [train]
    training = read_unlabelled(data, there[0])
    for name in there[1:]:
        training = join(data, training, read_unlabelled(data, name))
    has_val = (data / val).is_dir()
    return training, read_split(data, val) if has_val else Split(Files(data / val, ()), np.empty(0, np.int32), ())


def join(data: Path, split: Split, unlabelled: Split) -> Split:
    """The images of a split and then those of an unlabelled one, both of folders in `data`."""
    parts = (split.store, unlabelled.store)
    folders = [(os.path.relpath(part.root, data), part.names) for part in parts]
    names = Names.pack(os.path.join(folder, name) for folder, names in folders for name in names)
    return Split(Files(data, names), np.concatenate([split.labels, unlabelled.labels]), split.classes)
