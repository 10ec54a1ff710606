"""Splits of data in COCO's format: images with their objects, and counts of annotations that need special treatment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scalekd.data.decoding import UnreadableImageError, open_image
from scalekd.errors import UserError
from scalekd.models.weights import file_hash
from scalekd.tasks.detection.annotations import AnnotationEntry, Content, Id, ImageEntry, Mask, read_annotations
from scalekd.tasks.detection.coco_eval import COCO
from scalekd.tasks.detection.layout import annotation_file, image_folder, missing, named
from scalekd.tasks.detection.masks import box_of, decode_mask, usable_mask

_LIMIT = 1.0  # pixels: boxes with a smaller width or height are not trained on, as in mmdetection


class Remark(Enum):
    """Reasons why annotations are not used as is, each with its text for training and for evaluation.

    The text for evaluation is None if the annotation is evaluated as usual.
    """

    UNLISTED = ("annotations of images that the file does not list left out",) * 2
    NOWHERE = ("annotations with neither box nor mask left out",) * 2
    FLAT = ("boxes without area inside their image left out",) * 2
    CROWD = ("crowds not trained on (see crowds)", "crowds ignored (see crowds)")
    SMALL = ("boxes below a pixel not trained on", None)
    CLIPPED = ("boxes clipped to their image", None)
    UNMASKED = ("objects without a mask: only their boxes are learned", "objects without a mask, in box AP alone")
    LINE = ("masks without area: only their boxes are learned", "masks without area, in box AP alone")

    def __init__(self, training: str, evaluation: str | None) -> None:
        self.training, self.evaluation = training, evaluation


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        box: Left, upper, right, lower in pixels, clipped to the image.
        label: 1 to K, in the order of the classes; 0 is the background.
        mask: Polygons or a run-length encoding, as in the file; None if there is no mask.
        crowd: Whether it is a group of objects, which is never trained on and ignored in evaluation.
        stated: Left, upper, width, height in pixels as in the file; from the mask if the file has no box.
        area: In pixels, as in the file; the box's area if the file has none.
    """

    box: tuple[float, float, float, float]
    label: int
    mask: Mask | None
    crowd: bool
    stated: list[float]
    area: float

    @property
    def trained(self) -> bool:
        """Whether the detector is trained on this object."""
        left, upper, right, lower = self.box
        return not self.crowd and right - left >= _LIMIT and lower - upper >= _LIMIT


@dataclass
class AnnotatedImage:
    """An image with its objects."""

    coco_id: int  # id for COCO's evaluation: from 1, in the order of the file's ids
    path: Path
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)

    def target(self, *, masks: bool = True) -> dict[str, Tensor]:
        """Build the training target of torchvision's detectors.

        Args:
            masks: Whether to include masks.

        Returns:
            `boxes` `[N, 4]` and `labels` `[N]`; with masks also `masks` `[N, h, w]` of 0 and 1 (zeros for an object
            without a mask) and `masked` `[N]`, whether an object has a mask.
        """
        chosen = [instance for instance in self.instances if instance.trained]
        target = {
            "boxes": torch.tensor([i.box for i in chosen], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([i.label for i in chosen], dtype=torch.int64),
        }
        if not masks:
            return target
        drawn = torch.zeros(len(chosen), self.height, self.width, dtype=torch.uint8)
        for row, instance in zip(drawn, chosen, strict=True):
            if instance.mask is not None:
                row.copy_(decode_mask(instance.mask, self.height, self.width))
        return target | {"masks": drawn, "masked": torch.tensor([i.mask is not None for i in chosen], dtype=torch.bool)}


@dataclass(frozen=True)
class CocoSplit:
    """Images and objects of one split.

    Attributes:
        file: The annotation file.
        images: The images, in the file's order.
        classes: Class names, label 1 first.
        annotations: Number of annotations in the file.
        remarks: Numbers of annotations that are not used as is, by reason.
    """

    file: Path
    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    annotations: int
    remarks: Counter[Remark]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def objects(self) -> list[Instance]:
        """All objects."""
        return [instance for image in self.images for instance in image.instances]

    @property
    def masked(self) -> bool:
        """Whether any object that the detector is trained on has a mask."""
        return any(instance.trained and instance.mask is not None for instance in self.objects)

    @cached_property
    def box_truth(self) -> COCO:
        """Ground truth for the evaluation of boxes."""
        return self._truth("bbox")

    @cached_property
    def mask_truth(self) -> COCO:
        """Ground truth for the evaluation of masks.

        An object without a mask becomes a crowd that fills its box: missing it is no error, and detections inside it
        are ignored.
        """
        return self._truth("segm")

    @property
    def fingerprint(self) -> str:
        """A text that changes if the split's content changes: counts and the hash of the annotation file."""
        bare = sum(instance.trained and instance.mask is None for instance in self.objects)
        more = f", {bare} objects without a mask" if bare else ""
        return f"{len(self.images)} images{more}, {self.file.name} {file_hash(self.file)}"

    def without_empty(self) -> CocoSplit:
        """Return the split without images that have no object to train on."""
        kept = [p for p in self.images if any(instance.trained for instance in p.instances)]
        return replace(self, images=kept)

    def _truth(self, kind: Literal["bbox", "segm"]) -> COCO:
        entries: list[dict[str, Any]] = []
        for image in self.images:
            for instance in image.instances:
                entry = {
                    "id": len(entries) + 1,
                    "image_id": image.coco_id,
                    "category_id": instance.label,
                    "bbox": instance.stated,
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                }
                if kind == "segm":
                    entry["segmentation"] = instance.mask or [_corners(instance.box)]
                    entry["iscrowd"] = int(instance.crowd or instance.mask is None)
                entries.append(entry)
        images = [{"id": p.coco_id, "width": p.width, "height": p.height} for p in self.images]
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes, 1)]
        return COCO({"images": images, "annotations": entries, "categories": categories})


@dataclass(frozen=True)
class Source:
    """A split's annotation file, its content, and the folder of its images."""

    file: Path
    content: Content
    folder: Path


def read_source(root: Path, split: str) -> Source:
    """Find and read the annotations of a split (see `layout`).

    Raises:
        UserError: If there is no annotation file, or it is not in COCO's format.
    """
    file = annotation_file(root, split)
    content = read_annotations(file)
    return Source(file, content, image_folder(root, split, file, content["images"]))


def build_split(
    source: Source, labels: dict[Id, int], classes: Sequence[str], *, crowds: Literal["ignore", "objects"] = "ignore"
) -> CocoSplit:
    """Build a split from an annotation file and check that its image files exist.

    Args:
        source: The annotation file.
        labels: The label of each category, by id.
        classes: Class names, label 1 first.
        crowds: Whether annotations marked as crowds are ignored, as in COCO, or treated as ordinary objects.

    Raises:
        UserError: If an annotation names an unknown category, a mask cannot be decoded or has the wrong size, or an
            image file is missing.
    """
    content, remarks = source.content, Counter[Remark]()
    images = _annotated_images(content["images"], source)
    for annotation in content["annotations"]:
        image, label = images.get(annotation["image_id"]), labels.get(annotation["category_id"])
        where = f"{source.file}: annotation {annotation.get('id', '(no id)')}"
        if label is None:
            listed = ", ".join(map(str, list(labels)[:10]))
            named = f"category {annotation['category_id']}, which the file does not list"
            raise UserError(f"data: {where} is of {named}; it lists {listed}; fix the file")
        if image is None:
            remarks[Remark.UNLISTED] += 1
            continue
        crowd = bool(annotation.get("iscrowd")) and crowds == "ignore"
        instance = _instance(annotation, image, label, crowd=crowd, where=where, remarks=remarks)
        if instance is not None:
            image.instances.append(instance)
    return CocoSplit(source.file, list(images.values()), tuple(classes), len(content["annotations"]), remarks)


def _annotated_images(images: Sequence[ImageEntry], source: Source) -> dict[Id, AnnotatedImage]:
    """Return the images by id.

    Raises:
        UserError: If two images have the same id, or an image file is missing.
    """
    paths = {image["id"]: source.folder / named(image, source.file) for image in images}
    if len(paths) < len(images):
        raise UserError(f"data: {source.file}: two images have the same id; every image needs a unique id")
    gone = missing(paths.values())
    if gone:
        raise UserError(
            f"data: {len(gone)} of the {len(paths)} images of {source.file} are missing, the first {gone[0]}; "
            "add them, or remove them from the file"
        )
    ordered = sorted(paths, key=lambda number: (isinstance(number, str), number))
    ranks = {number: rank for rank, number in enumerate(ordered, 1)}
    return {i["id"]: AnnotatedImage(ranks[i["id"]], paths[i["id"]], *_size(i, paths[i["id"]])) for i in images}


def _size(image: ImageEntry, path: Path) -> tuple[int, int]:
    """Return an image's width and height from the annotations, or from the image file if they are not stated."""
    width, height = image.get("width"), image.get("height")
    if width and height:
        return width, height
    try:
        with open_image(partial(str, path)) as opened:
            return opened.size
    except UnreadableImageError as error:
        raise UserError(
            f"data: {path} has no width and height in the annotations and cannot be read ({error}); add them"
        ) from None


def _instance(
    annotation: AnnotationEntry, image: AnnotatedImage, label: int, *, crowd: bool, where: str, remarks: Counter[Remark]
) -> Instance | None:
    """Build an object from an annotation; None if it cannot be used. Counts what is not used as is in `remarks`."""
    given = annotation.get("segmentation")
    mask = None if given is None else usable_mask(given, image.height, image.width, where)
    stated = annotation.get("bbox") or (mask and box_of(mask, image.height, image.width))
    if not stated:
        remarks[Remark.NOWHERE] += 1
        return None
    box, beyond = _clipped(stated, image)
    if box is None:
        remarks[Remark.FLAT] += 1
        return None
    instance = Instance(box, label, mask, crowd, stated, annotation.get("area") or stated[2] * stated[3])
    if beyond >= _LIMIT:  # less is rounding
        remarks[Remark.CLIPPED] += 1
    if crowd:
        remarks[Remark.CROWD] += 1
    elif not instance.trained:
        remarks[Remark.SMALL] += 1
    if mask is None and not crowd:
        remarks[Remark.UNMASKED if given is None else Remark.LINE] += 1
    return instance


def _clipped(bbox: list[float], image: AnnotatedImage) -> tuple[tuple[float, float, float, float] | None, float]:
    """Clip a box `[x, y, width, height]` to its image.

    Returns:
        The corners (None if no area is left), and by how many pixels the box exceeded the image at most.
    """
    x, y, width, height = bbox
    left, right = max(x, 0.0), min(x + width, float(image.width))
    upper, lower = max(y, 0.0), min(y + height, float(image.height))
    if left >= right or upper >= lower:
        return None, 0.0
    return (left, upper, right, lower), max(left - x, upper - y, x + width - right, y + height - lower)


def _corners(box: tuple[float, float, float, float]) -> list[float]:
    left, upper, right, lower = box
    return [left, upper, right, upper, right, lower, left, lower]
