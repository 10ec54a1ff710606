"""Annotations in COCO's format: read, checked, and counted where something had to be left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO
from faster_coco_eval.core import mask as rle_tools
from torch import Tensor

from scalekd.data.decoding import MAX_PIXELS
from scalekd.data.sources.source import escapes
from scalekd.downstream.detection.annotations import (
    AnnotationEntry,
    CategoryEntry,
    Content,
    Encoding,
    ImageEntry,
    read_annotations,
)
from scalekd.errors import UserError
from scalekd.models.weights import file_hash

_POINTS = 6  # numbers of the smallest polygon, a triangle
_FAR = 10  # times the image's longer side
_LIMIT = 1.0  # pixels: a box narrower or lower than this is not trained on, as in mmdetection


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        box: Left, upper, right, lower in pixels, inside the image.
        label: 1 to K, in the order of the category ids; 0 is the background.
        mask: Polygons or a run-length encoding, as in the file.
        crowd: Whether it stands for a group: never trained on, ignored in evaluation.
    """

    box: tuple[float, float, float, float]
    label: int
    mask: Any
    crowd: bool

    @property
    def trained(self) -> bool:
        """Whether the detector learns from it."""
        left, upper, right, lower = self.box
        return not self.crowd and right - left >= _LIMIT and lower - upper >= _LIMIT


@dataclass
class Picture:
    """An image with its objects."""

    number: int  # the image's id in the file
    path: Path
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)

    def target(self) -> dict[str, Tensor]:
        """What torchvision's detectors learn from: `boxes` `[N, 4]`, `labels` `[N]`, `masks` `[N, h, w]` of 0 and 1."""
        chosen = [instance for instance in self.instances if instance.trained]
        masks = [decode_mask(instance.mask, self.height, self.width) for instance in chosen]
        return {
            "boxes": torch.tensor([i.box for i in chosen], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([i.label for i in chosen], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, self.height, self.width, dtype=torch.uint8),
        }


@dataclass
class CocoSplit:
    """Images and annotations of one split.

    Attributes:
        file: The annotations.
        pictures: The images, in the file's order.
        category_ids: The file's ids, ascending; label `i + 1` is the i-th.
        classes: Names in that order.
        left_out: How many annotations were left out or changed, and why.
        content: What the file holds without those left out; annotations numbered anew from 1.
    """

    file: Path
    pictures: list[Picture]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]
    left_out: Counter[str]
    content: Content

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def truth(self) -> COCO:
        """The annotations for the evaluation."""
        return COCO(self.content)

    @property
    def fingerprint(self) -> str:
        """What the split holds, to notice that it was changed."""
        return f"{len(self.pictures)} images, {self.file.name} {file_hash(self.file)}"

    def without_empty(self) -> CocoSplit:
        """The same without images that nothing is learned from but the background."""
        kept = [p for p in self.pictures if any(instance.trained for instance in p.instances)]
        return CocoSplit(self.file, kept, self.category_ids, self.classes, self.left_out, self.content)


def decode_mask(mask: Any, height: int, width: int) -> Tensor:
    """Polygons or a run-length encoding -> `[h, w]` of 0 and 1, uint8."""
    decoded = rle_tools.decode(rle_tools.segmToRle(mask, width, height))
    return torch.from_numpy(np.ascontiguousarray(decoded))


def read_coco(root: Path, split: str) -> CocoSplit:
    """Read `ROOT/annotations/instances_SPLIT.json` and check it against the images in `ROOT/SPLIT/`.

    Boxes are clipped to their image. Left out are annotations whose box has no area then, and those whose mask has no
    polygon of three points; they are counted.

    Raises:
        UserError: If the file is missing or no such JSON, an annotation names an image or category that is not there,
            a box is no four numbers, a mask is missing or of another size, or an image's file is missing.
    """
    file = root / "annotations" / f"instances_{split}.json"
    if not file.is_file():
        raise UserError(f"data: no such file: {file}; needed are {split}/ and annotations/{file.name} in {root}")
    content = read_annotations(file)
    pictures = _pictures(content["images"], root / split, file)
    names = _categories(content["categories"], file)
    labels = {category: label for label, category in enumerate(names, 1)}
    left_out: Counter[str] = Counter()
    kept: list[AnnotationEntry] = []
    for annotation in content["annotations"]:
        read = _instance(
            annotation, pictures, labels, f"{file}: annotation {annotation.get('id', '(no id)')}", left_out
        )
        if read is not None:
            pictures[annotation["image_id"]].instances.append(read)
            area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
            ours = {"id": len(kept) + 1, "iscrowd": int(read.crowd), "area": area, "segmentation": read.mask}
            kept.append({**annotation, **ours})  # type: ignore[typeddict-item]
    content["annotations"] = kept
    return CocoSplit(file, list(pictures.values()), tuple(names), tuple(names.values()), left_out, content)


def _pictures(images: list[ImageEntry], folder: Path, file: Path) -> dict[int, Picture]:
    """The images by id; all their files must be there."""
    outside = next((image["file_name"] for image in images if escapes(image["file_name"])), None)
    if outside is not None:
        raise UserError(f"data: {file} names the image {outside!r}, which is outside of {folder}; do not trust it")
    pictures = {i["id"]: Picture(i["id"], folder / i["file_name"], i["width"], i["height"]) for i in images}
    if len(pictures) < len(images):
        raise UserError(f"data: {file}: two images have the same id; every image needs one of its own")
    there = set(os.listdir(folder)) if folder.is_dir() else set()  # a look at each takes minutes
    missing = [p.path for p in pictures.values() if p.path.name not in there and not p.path.is_file()]
    if missing:
        raise UserError(
            f"data: {len(missing)} of the {len(pictures)} images of {file} are missing, the first {missing[0]}; "
            "add them, or take them out of the file"
        )
    return pictures


def _categories(categories: list[CategoryEntry], file: Path) -> dict[int, str]:
    """Names by id, ascending; ids may have gaps, as COCO's have."""
    names = {category["id"]: category["name"] for category in categories}
    if len(set(names.values())) < len(categories):
        raise UserError(f"data: {file}: every category needs a name and an id of its own")
    return dict(sorted(names.items()))


def _instance(
    annotation: AnnotationEntry,
    pictures: dict[int, Picture],
    labels: dict[int, int],
    where: str,
    left_out: Counter[str],
) -> Instance | None:
    """One annotation, or None where nothing of it can be used, which is counted."""
    picture, label = pictures.get(annotation["image_id"]), labels.get(annotation["category_id"])
    if picture is None:
        raise UserError(f"data: {where} is of image {annotation['image_id']}, which the file does not list")
    if label is None:
        raise UserError(f"data: {where} is of category {annotation['category_id']}, which the file does not list")
    box = _box(annotation["bbox"], picture, left_out)
    mask = _mask(annotation["segmentation"], picture, where)
    if box is None:
        left_out["boxes without area inside their image left out"] += 1
        return None
    if mask is None:
        left_out["masks without area left out"] += 1
        return None
    instance = Instance(box, label, mask, bool(annotation.get("iscrowd", 0)))
    if instance.crowd:
        left_out["crowds not trained on, and ignored in evaluation"] += 1
    elif not instance.trained:
        left_out["boxes below a pixel not trained on"] += 1
    return instance


def _box(bbox: list[float], picture: Picture, left_out: Counter[str]) -> tuple[float, float, float, float] | None:
    """`[x, y, width, height]` -> corners inside the image; None where nothing of it is there."""
    x, y, width, height = bbox
    left, right = max(x, 0.0), min(x + width, float(picture.width))
    upper, lower = max(y, 0.0), min(y + height, float(picture.height))
    if left >= right or upper >= lower:
        return None
    beyond = max(left - x, upper - y, x + width - right, y + height - lower)
    if beyond >= _LIMIT:  # less is rounding
        left_out["boxes clipped to their image"] += 1
    return left, upper, right, lower


def _mask(mask: list[list[float]] | Encoding, picture: Picture, where: str) -> list[list[float]] | Encoding | None:
    """Polygons or a run-length encoding that can be decoded; None where no polygon has an area."""
    if isinstance(mask, list):
        farthest = max((abs(number) for polygon in mask for number in polygon), default=0)
        if farthest > _FAR * max(picture.width, picture.height):  # drawing its outline would take ages
            raise UserError(f"data: {where} has a polygon that goes to {farthest:g}, far outside its image; mend it")
        return [polygon for polygon in mask if len(polygon) >= _POINTS and len(polygon) % 2 == 0] or None
    if mask["size"] != [picture.height, picture.width]:
        raise UserError(
            f"data: {where} has a mask of {mask['size']}, but its image is of {[picture.height, picture.width]}"
        )
    if picture.width * picture.height > MAX_PIXELS:
        return mask  # its image is told of when it is read
    try:
        decode_mask(mask, picture.height, picture.width)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data: {where} has a mask that cannot be decoded: {error}") from None
    return mask
