"""Where the tools that write COCO's format put a split's annotations and images."""

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
_TRIED = 64  # images by which a folder is chosen
_CONVERT = "convert it to COCO's format: docs/transfer-detection.md says how"


def annotation_file(root: Path, split: str) -> Path:
    """The annotations of a split: the file of that name in `root`, or where one of the tools puts them.

    Raises:
        UserError: If there are none; names those that are there, or the other layout that the folder is in.
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
    """The folder that the images' names are relative to: of those that the tools use, that which holds most of them.

    Raises:
        UserError: If a name is a URL or leads out of the folder.
    """
    folders = [file.parent, file.parent / "images", file.parent / "data", root / "images", root / "data", root]
    if not split.endswith(_ENDING):
        folders = [root / split, root / "images" / split, root / split / "images", root / split / "data", *folders]
    else:  # CVAT: annotations/instances_default.json is of images/default
        part = file.stem.removeprefix("instances_")
        folders = [root / part, root / "images" / part, *folders]
    if (root / "images").is_dir():  # a file parted by hand: its images are still where the tool has put them
        folders += sorted(folder for folder in (root / "images").iterdir() if folder.is_dir())
    names = [named(image, file) for image in images[:_TRIED]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))  # the first of the best


def named(image: ImageEntry, file: Path) -> str:
    """An image's file, relative to the images' folder; Windows' separators become ours.

    Raises:
        UserError: If it is a URL or leads out of the folder.
    """
    name = image["file_name"]
    if "://" in name:
        raise UserError(f"data: {file} names the image {name!r}, a URL; export the images, too, and name their files")
    name = name.replace("\\", "/")
    if escapes(name) or name[1:2] == ":":
        raise UserError(
            f"data: {file} names the image {image['file_name']!r}, which is outside of the data; "
            "images must be named relative to their folder"
        )
    return name


def missing(paths: Iterable[Path]) -> list[Path]:
    """Those that are no files; each folder is listed once, as a look at each file takes minutes."""
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
    """What to give instead: files of annotations that are there, or how to convert another tool's layout."""
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
    """The layout of another tool, known by files that only it has."""
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
    """Whether a file is of one image and lists its shapes."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "shapes" in content
