"""Writes small annotation files in COCO's format, and reads them as a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekd.tasks.detection.categories import labels_by_name, learned_classes
from scalekd.tasks.detection.coco import CocoSplit, build_split, read_source

WIDTH, HEIGHT = 40, 30
SQUARE = {"id": 1, "image_id": 3, "category_id": 2, "bbox": [4, 5, 10, 8], "area": 80, "iscrowd": 0}
POLYGON = [[4, 5, 14, 5, 14, 13, 4, 13]]
CATEGORIES = [{"id": 7, "name": "b"}, {"id": 2, "name": "a"}]


def silent(line: str) -> None:
    """Ignore the lines that a run prints."""


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Write an image of noise; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def write_split(root: Path, *annotations: dict[str, Any], split: str = "train2017", **parts: Any) -> Path:
    """Write two images, 3 and 8, with variations of one object, without its keys that are `...`; return `root`."""
    images = [{"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in (3, 8)]
    for image in images:
        write_image(root / split / str(image["file_name"]))
    objects = [SQUARE | {"segmentation": POLYGON} | annotation for annotation in annotations]
    objects = [{key: value for key, value in entry.items() if value is not ...} for entry in objects]
    content = {"images": images, "annotations": objects, "categories": CATEGORIES} | parts
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def read_split(root: Path, split: str = "train2017", **options: Any) -> CocoSplit:
    """Read one split with its own classes."""
    source = read_source(root, split)
    classes = learned_classes(source.file, source.content, source.content, silent)
    return build_split(source, labels_by_name(source.file, source.content, classes, "itself"), classes, **options)


def remarks(split: CocoSplit) -> dict[str, int]:
    """Return the counted remarks by name."""
    return {remark.name: count for remark, count in split.remarks.items()}
