"""Draws annotations and predictions next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from scalekd.tasks.detection.coco import AnnotatedImage
from scalekd.tasks.detection.data import Target

_SCORE = 0.5  # predictions with a lower score are not drawn
_MASK = 0.5  # pixels with a higher probability belong to the object
_COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "orange", "white", "purple", "brown")


def draw(image: Tensor, objects: Target, classes: Sequence[str]) -> Tensor:
    """Draw boxes and class names on an image `[3, h, w]`, uint8, and masks and scores if any; one colour per class."""
    labels = objects["labels"].tolist()
    if not labels:
        return image
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels]
    names = [classes[label - 1] for label in labels]
    if "scores" in objects:
        names = [f"{name} {score:.2f}" for name, score in zip(names, objects["scores"].tolist(), strict=True)]
    if "masks" in objects:
        image = draw_segmentation_masks(image, objects["masks"].bool(), alpha=0.4, colors=colours)
    boxed: Tensor = draw_bounding_boxes(image, objects["boxes"], labels=names, colors=colours, width=2)
    return boxed


def write_comparison(
    path: Path, image: Tensor, annotated: AnnotatedImage, output: Target, classes: Sequence[str]
) -> None:
    """Write an image twice, side by side: with its annotations and with its predictions of score 0.5 or more.

    Args:
        path: PNG file to write.
        image: `[3, h, w]`, uint8.
        annotated: The image's annotations.
        output: The detector's output for it.
        classes: Class names, label 1 first.
    """
    sure = output["scores"] >= _SCORE
    found = {name: value[sure].cpu() for name, value in output.items()}
    if "masks" in found:
        found["masks"] = found["masks"][:, 0] > _MASK
    targets = annotated.target(masks="masks" in found)
    sides = [draw(image, targets, classes), draw(image, found, classes)]
    F.to_pil_image(torch.cat(sides, dim=2)).save(path)
