"""Finds a split's annotation file and image folder in the layouts of tools that export COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from scalekd.data.sources.source import escapes
from scalekd.errors import UserError
from scalekd.tasks.detection.annotations import ImageEntry

_FILES = (
    "annotations/instances_{split}.json",  # COCO, CVAT, Datumaro
    "{split}/_annotations.coco.json",  # Roboflow
    "{split}/annotations/instances.json",  # Supervisely
    "{split}/result.json",  # Label Studio
    "{split}/labels.json",  # FiftyOne
    "annotations/{split}.json",
    "{split}.json",
)
_ENDING = ".json"
_TRIED = 64  # images that are looked for to choose a folder
_CONVERT = "convert it to COCO's format: docs/transfer-detection.md says how"


def annotation_file(root: Path, split: str) -> Path:
    """Find the annotation file of a split: a JSON file named `split` in `root`, or the file in a known tool's layout.

    Raises:
        UserError: If there is none; lists the annotation files in `root`, or names an unsupported layout.
    """
    if split.endswith(_ENDING):
        if (root / split).is_file():
            return root / split
        raise UserError(f"data: no such file: {root / split}{_instead(root)}")
    found = [file for pattern in _FILES if (file := root / pattern.format(split=split)).is_file()]
    if not found:
        if not root.is_dir():
            raise UserError(f"data: no such folder: {root}")
        first = root / _FILES[0].format(split=split)
        raise UserError(f"data: no such file: {first}{_instead(root)}")
    return found[0]


def image_folder(root: Path, split: str, file: Path, images: Sequence[ImageEntry]) -> Path:
    """Find the folder that the images' names are relative to.

    Of the folders that tools use, it is the one that holds most of the first images.

    Raises:
        UserError: If a name is a URL or points outside of the folder.
    """
    folders = [file.parent, file.parent / "images", file.parent / "data", root / "images", root / "data", root]
    if not split.endswith(_ENDING):
        folders = [root / split, root / "images" / split, root / split / "images", root / split / "data", *folders]
    else:  # CVAT: annotations/instances_default.json belongs to images/default
        part = file.stem.removeprefix("instances_")
        folders = [root / part, root / "images" / part, *folders]
    if (root / "images").is_dir():  # an annotation file split by hand: the images are still in the tool's folder
        folders += sorted(folder for folder in (root / "images").iterdir() if folder.is_dir())
    names = [named(image, file) for image in images[:_TRIED]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))  # the first of equals


def named(image: ImageEntry, file: Path) -> str:
    """Return an image's path relative to the images' folder, with Windows separators replaced.

    Raises:
        UserError: If it is a URL or points outside of the folder.
    """
    name = image["file_name"]
    if "://" in name:
        raise UserError(f"data: {file} names the image {name!r}, a URL; export the images too and name their files")
    name = name.replace("\\", "/")
    if escapes(name) or name[1:2] == ":":
        raise UserError(
            f"data: {file} names the image {image['file_name']!r}, which is outside of the data; "
            "images must be named relative to their folder"
        )
    return name


def missing(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that do not exist.

    Each folder is listed once, because checking each file separately takes minutes.
    """
    listed: dict[Path, set[str]] = {}
    gone = []
    for path in paths:
        folder = path.parent
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if path.name not in listed[folder]:
            gone.append(path)
    return gone


def _instead(root: Path) -> str:
    """Say what to pass instead: the annotation files in the folder, or how to convert another tool's layout."""
    found = sorted(
        str(file.relative_to(root))
        for pattern in (
            "annotations/*.json",
            "*/_annotations.coco.json",
            "*/annotations/instances.json",
            "*/*.json",
            "*.json",
        )
        for file in root.glob(pattern)
        if not file.name.startswith(".")
    )
    other = _other_layout(root)
    if other:
        return f"; the folder is in {other}, which is not read: {_CONVERT}"
    if found:
        listed = ", ".join(list(dict.fromkeys(found))[:4])
        return f"; found is {listed}: name the splits with train_split and val_split, by name or by file"
    return "; needed are annotations in COCO's format and the images: docs/transfer-detection.md lists the layouts"


def _other_layout(root: Path) -> str | None:
    """Recognise the layout of another tool by files that only it has; None if it is not recognised."""
    marks = {
        "YOLO's layout": ("data.yaml", "labels/*.txt", "labels/*/*.txt", "*/labels/*.txt", "obj.names"),
        "Pascal VOC's layout": ("Annotations/*.xml", "*/Annotations/*.xml", "*.xml", "*/*.xml"),
        "Supervisely's own layout": ("*/ann/*.json",),
    }
    found = next((tool for tool, globs in marks.items() if any(any(root.glob(mark)) for mark in globs)), None)
    if found is None and any(map(_of_labelme, [*root.glob("*.json"), *root.glob("*/*.json")][:_TRIED])):
        return "LabelMe's layout"
    return found


def _of_labelme(file: Path) -> bool:
    """Whether a file is in LabelMe's format: one image with a list of shapes."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "shapes" in content
