"""Image folders: one folder per split with one folder per class, and folders of unlabelled images."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from scalekd.data.endings import is_image
from scalekd.data.index import Listing, list_classes, list_unlabelled
from scalekd.data.layout_hints import conversion_hint, split_flag_hint
from scalekd.data.split import Files, Split
from scalekd.errors import UserError, did_you_mean

_LOOKED_AT = 20  # folders, and files in each, that are examined to find out what they are


def _folder(data: Path, name: str) -> Path:
    """Return `data/name`.

    Raises:
        UserError: If it is not a folder; suggests what may have been meant.
    """
    if not data.is_dir():
        raise UserError(f"data: no such folder: {data}")
    root = data / name
    if not root.is_dir():
        found = sorted(p.name for p in data.iterdir() if p.is_dir())
        if any(data.glob("*.parquet")) or any(data.glob("*.arrow")):
            raise UserError(f"data: {data} holds tables of a Hugging Face data set; specify it as hf:{data}")
        holds = f"it holds {', '.join(found[:5])}" if found else "it holds no folders"
        hint, parent = split_flag_hint(data, name) or did_you_mean(name, found), data.absolute().parent
        if not hint and (parent / name).is_dir():  # DATA/train was given
            hint = f"; did you mean its parent, {parent}?"
        classes = sum(_has_images(data / folder) for folder in found[:_LOOKED_AT])
        if classes > 1 and not hint and not conversion_hint(data):
            raise UserError(
                f"data: {data} has no folder {name!r}; {holds}, which hold images: classes that are not split yet. "
                "To hold out a tenth of each class as validation images, pass --val-share 0.1 (val_share), or list the "
                "images with their splits in a CSV file (docs/data.md)"
            )
        raise UserError(
            f"data: {data} has no folder {name!r}{hint}; {holds}. It needs one folder for training and one for "
            "validation; if they have other names, specify them as train_split and val_split (--train-split, "
            f"--val-split){conversion_hint(data)}"
        )
    return root


def _has_images(folder: Path) -> bool:
    """Whether one of the first files in a folder is an image by its ending."""
    try:
        with os.scandir(folder) as entries:
            return any(is_image(entry.name) for entry in islice(entries, _LOOKED_AT))
    except OSError:
        return False


def read_split(data: str | Path, name: str) -> Split:
    """List `data/name/<class>/*`; files whose ending is not that of an image are left out and counted.

    Args:
        data: The folder of all splits.
        name: The split's name.

    Raises:
        UserError: If the folder is missing, or holds no folder or no image.
    """
    data = Path(data)
    root = _folder(data, name)
    listing = list_classes(root)
    if not listing.classes:
        raise UserError(
            f"data: {root} holds no folder: it needs one folder of images for each class{conversion_hint(data)}"
        )
    if not len(listing.names):
        raise _no_images(root, listing)
    return Split(Files(root, listing.names), listing.labels, listing.classes, listing.skipped)


def read_unlabelled(data: str | Path, name: str) -> Split:
    """List all images in `data/name` and its subfolders, without labels.

    Raises:
        UserError: If the folder is missing or holds no image.
    """
    data = Path(data)
    root = _folder(data, name)
    listing = list_unlabelled(root)
    if not len(listing.names):
        raise _no_images(root, listing)
    return Split(Files(root, listing.names), listing.labels, listing.classes, listing.skipped)


def _no_images(root: Path, listing: Listing) -> UserError:
    found = listing.skipped.described()
    return UserError(f"data: no images in {root}{f' ({found})' if found else ''}")
