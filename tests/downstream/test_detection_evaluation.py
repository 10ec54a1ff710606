from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from faster_coco_eval import COCO

from scalekd.tasks.detection.evaluation import FIGURES, as_results, average_precision

FILES = Path(__file__).parent / "files"
KINDS: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm")


@pytest.fixture
def truth() -> COCO:
    """Return 4 images, 15 objects of three categories: polygons, both run-length encodings, a crowd. One is empty."""
    content = json.loads((FILES / "truth.json").read_text())
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    return COCO(content)


@pytest.fixture
def predictions() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FILES / "predictions.json").read_text())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_pycocotools(kind: Literal["bbox", "segm"], truth: COCO, predictions: Any) -> None:
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    theirs = coco.COCO()
    theirs.dataset = json.loads(json.dumps(truth.dataset))
    theirs.createIndex()
    part = {"bbox": "bbox", "segm": "segmentation"}[kind]
    keys = ("image_id", "category_id", "score", part)
    kept = [{key: found[key] for key in keys} for found in json.loads(json.dumps(predictions))]
    evaluation = COCOeval(theirs, theirs.loadRes(kept), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    measured = average_precision(truth, predictions, kind)
    wanted = [None if value < 0 else 100 * value for value in evaluation.stats[:6]]
    assert list(measured.figures) == list(FIGURES)
    assert list(measured.figures.values()) == pytest.approx(wanted)
    assert 10 < (measured.figures["AP"] or 0) < 90
    by_class = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))
    assert list(measured.per_class.values()) == pytest.approx([100 * value for value in by_class])
    assert list(measured.per_class) == ["cat", "dog", "bird"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_predictions_at_all_give_zeros(kind: Literal["bbox", "segm"], truth: COCO) -> None:
    measured = average_precision(truth, [], kind)
    assert measured.figures["AP"] == 0
    assert set(measured.per_class.values()) == {0}


def test_images_that_were_not_looked_at_do_not_count(truth: COCO, predictions: Any) -> None:
    seen = sorted({found["image_id"] for found in predictions})[:1]
    part = [found for found in predictions if found["image_id"] in seen]
    of_all, of_seen = (average_precision(truth, part, "bbox", images).figures["AP"] for images in (None, seen))
    assert of_seen > of_all  # type: ignore[operator]
    content = truth.dataset | {"images": [image for image in truth.dataset["images"] if image["id"] in seen]}
    content["annotations"] = [a for a in truth.dataset["annotations"] if a["image_id"] in seen]
    assert of_seen == pytest.approx(average_precision(COCO(content), part, "bbox").figures["AP"])


def test_a_class_that_does_not_occur_has_no_figure(truth: COCO) -> None:
    truth.dataset["categories"].append({"id": 91, "name": "fish"})
    assert average_precision(COCO(truth.dataset), [], "bbox").per_class["fish"] is None


def test_what_the_detector_gives_becomes_cocos_results() -> None:
    masks = torch.zeros(2, 1, 20, 30)
    masks[0, 0, 2:6, 3:10] = 0.9
    output = {
        "boxes": torch.tensor([[3.0, 2.0, 10.0, 6.0], [0.0, 0.0, 5.0, 5.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([2, 1]),
        "masks": masks,
    }
    first, second = as_results([output], [42])
    assert (first["image_id"], first["category_id"], first["score"]) == (42, 2, 0.75)
    assert first["bbox"] == [3, 2, 7, 4]
    assert first["segmentation"]["size"] == [20, 30]
    assert second["category_id"] == 1
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0), "masks": masks[:0]}
    assert as_results([empty], [1]) == []
    del output["masks"]
    assert all("segmentation" not in result for result in as_results([output], [42]))
