"""Computes the average precision of boxes and masks with COCO's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scalekd.tasks.detection.coco_eval import COCO, COCOeval_faster, rle_tools

FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_MASK_LIMIT = 0.5  # pixels with a higher probability belong to the object


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision in percent; None if there is nothing to find, for example no small object.

    Attributes:
        figures: AP by the names in `FIGURES`: over IoU 0.5 to 0.95, at 0.5, at 0.75, and by object size.
        per_class: AP over IoU 0.5 to 0.95 of each class.
    """

    figures: dict[str, float | None]
    per_class: dict[str, float | None]


def as_results(outputs: Sequence[dict[str, Tensor]], coco_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the outputs of torchvision's detectors to COCO's results; a category's id is its label.

    Args:
        outputs: For each image `boxes` `[N, 4]` (corners), `scores` `[N]`, `labels` `[N]`, and `masks`
            `[N, 1, h, w]` if the detector predicts them.
        coco_ids: The id of each image.
    """
    results = []
    for output, coco_id in zip(outputs, coco_ids, strict=True):
        boxes, scores = output["boxes"].cpu(), output["scores"].cpu().tolist()
        sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
        corners, labels = boxes[:, :2].tolist(), output["labels"].tolist()
        for index, score in enumerate(scores):
            result = {
                "image_id": coco_id,
                "category_id": labels[index],
                "score": score,
                "bbox": corners[index] + sides[index],
            }
            if "masks" in output:
                result["segmentation"] = encode_mask(output["masks"][index, 0] > _MASK_LIMIT)
            results.append(result)
    return results


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """Convert a mask `[h, w]` to COCO's compressed run-length encoding."""
    encoded: dict[str, Any] = rle_tools.encode(np.asfortranarray(mask.to(torch.uint8).cpu().numpy()))
    return encoded


def average_precision(
    truth: COCO, results: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"], images: Sequence[int] | None = None
) -> AveragePrecision:
    """Compute COCO's figures for predictions against annotations.

    Args:
        truth: The annotations.
        results: Predictions with `image_id`, `category_id`, `score`, and `bbox` or `segmentation` depending on `kind`.
            Without predictions all figures are zero.
        kind: `bbox` measures boxes `[x, y, width, height]`. `segm` measures masks, given as run-length encodings in
            `segmentation`; small, medium and large are then defined by the areas of the masks.
        images: Ids of the evaluated images. Default: all.
    """
    part = {"bbox": "bbox", "segm": "segmentation"}[kind]
    kept = ("image_id", "category_id", "score", part)
    predicted = truth.loadRes([{key: result[key] for key in kept} for result in results])
    evaluation = COCOeval_faster(truth, predicted, kind)
    if images is not None:
        evaluation.params.imgIds = sorted(images)
    evaluation.run()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class; all sizes, 100 per image
    names = {category["id"]: category["name"] for category in truth.loadCats(evaluation.params.catIds)}
    per_class = {
        names[category]: _percent(_mean(precision[:, :, index]))
        for index, category in enumerate(evaluation.params.catIds)
    }
    figures = dict(zip(FIGURES, (_percent(float(value)) for value in evaluation.stats), strict=False))
    return AveragePrecision(figures, per_class)


def _mean(precision: Any) -> float:
    """Return the mean of the measured values; -1 marks values that were not measured."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value
