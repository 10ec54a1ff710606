"""Objects as tools write them: boxes without masks, masks without boxes, crowds, ids and sizes in different forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_data import HEIGHT, POLYGON, WIDTH, read_split, remarks, silent, write_split
from torchvision.models.detection.roi_heads import RoIHeads

from scalekd.errors import UserError
from scalekd.tasks.detection import Detection
from scalekd.tasks.detection.evaluation import average_precision, encode_mask
from scalekd.tasks.detection.model import build_detector
from scalekd.tasks.detection.reading import facts, read_data
from scalekd.tasks.transfer.backbone import Backbone

BOX = {"bbox": [20, 10, 12, 9], "area": 108, "segmentation": []}


@pytest.mark.parametrize(
    ("mask", "counted"),
    [
        ([], "UNMASKED"),
        (None, "UNMASKED"),
        ({}, "UNMASKED"),
        (..., "UNMASKED"),
        ([[]], "LINE"),
        ([[1, 1, 9, 9]], "LINE"),
        ([[4, 5, 9, 5, 14, 5]], "LINE"),
        ({"counts": [WIDTH * HEIGHT], "size": [HEIGHT, WIDTH]}, "LINE"),
    ],
)
def test_an_object_without_a_mask_is_a_box_in_training_and_truth(tmp_path: Path, mask: Any, counted: str) -> None:
    split = read_split(write_split(tmp_path, {}, BOX | {"segmentation": mask}))
    target = split.images[0].target()
    assert target["boxes"].tolist() == [[4, 5, 14, 13], [20, 10, 32, 19]]
    assert target["masked"].tolist() == [True, False]
    assert not target["masks"][1].any()
    assert remarks(split) == {counted: 1}
    assert split.masked
    assert [entry["iscrowd"] for entry in split.box_truth.dataset["annotations"]] == [0, 0]
    assert [entry["iscrowd"] for entry in split.mask_truth.dataset["annotations"]] == [0, 1]


def test_a_file_without_masks_is_told_from_others(tmp_path: Path) -> None:
    assert not read_split(write_split(tmp_path, BOX, BOX | {"segmentation": None})).masked
    assert "2 objects without a mask" in read_split(tmp_path).fingerprint
    assert "without" not in read_split(write_split(tmp_path, {})).fingerprint


def found(box: list[float], mask: np.ndarray[Any, Any] | None = None, score: float = 0.9) -> dict[str, Any]:
    """Return a prediction of class a in image 3: a box and its mask, by default the whole box."""
    x, y, width, height = (int(number) for number in box)
    if mask is None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[y : y + height, x : x + width] = 1
    segmentation = encode_mask(torch.from_numpy(mask))
    return {"image_id": 1, "category_id": 1, "score": score, "bbox": box, "segmentation": segmentation}


def test_what_is_found_where_there_is_a_box_alone_counts_for_boxes_and_not_against_masks(tmp_path: Path) -> None:
    split = read_split(write_split(tmp_path, {}, BOX))
    both = [found([20, 10, 12, 9], score=0.95), found([4, 5, 10, 8])]

    def ap(results: list[dict[str, Any]]) -> list[float | None]:
        truths = {"bbox": split.box_truth, "segm": split.mask_truth}
        return [average_precision(truths[kind], results, kind).figures["AP"] for kind in ("bbox", "segm")]

    assert ap(both) == pytest.approx([100, 100])
    boxes, masks = ap(both[1:])
    assert boxes is not None
    assert boxes < 60  # one of two is missed
    assert masks == pytest.approx(100)
    wrong = found([0, 20, 12, 9], score=0.99)
    assert all(value is not None and value < 90 for value in ap([wrong, *both]))


@pytest.mark.parametrize("box", [..., None, []])
def test_a_box_that_is_not_given_is_that_of_its_mask(tmp_path: Path, box: Any) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[5:13, 4:14] = 1
    encoding = encode_mask(torch.from_numpy(drawn))
    encoding["counts"] = getattr(encoding["counts"], "decode", lambda: encoding["counts"])()
    masks = [POLYGON, encoding, POLYGON[0]]  # the last as one polygon without a list around it
    split = read_split(write_split(tmp_path, *({"bbox": box, "area": ..., "segmentation": mask} for mask in masks)))
    assert split.images[0].target()["boxes"].tolist() == [[4, 5, 14, 13]] * 3
    assert [entry["area"] for entry in split.box_truth.dataset["annotations"]] == [80] * 3
    nothing = read_split(write_split(tmp_path, {}, {"bbox": box, "segmentation": []}))
    assert remarks(nothing) == {"NOWHERE": 1}


@pytest.mark.parametrize(
    "forms",
    [("3", "8", "2", "7"), (3.0, 8.0, 2.0, 7.0), ("c1f-3", "c1f-8", "first", "second"), (-3, 8, -2, 7), (0, 8, 0, 7)],
)
def test_ids_may_be_numbers_or_texts_and_annotations_may_write_them_in_another_way(
    tmp_path: Path, forms: tuple[Any, ...]
) -> None:
    first, second, one, two = forms
    images = [
        {"id": i, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for i, n in ((second, 8), (first, 3))
    ]
    categories = [{"id": two, "name": "b"}, {"id": one, "name": "a"}]
    said = {"image_id": str(first), "category_id": str(one)}
    root = write_split(tmp_path, said, said | {"category_id": two}, images=images, categories=categories)
    split = read_split(root)
    assert split.classes == ("a", "b")
    assert [len(image.instances) for image in split.images] == [0, 2]
    assert split.images[1].target()["labels"].tolist() == [1, 2]
    assert average_precision(split.box_truth, [], "bbox").per_class == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    "size", [{"width": "40", "height": "30"}, {"width": 40.0, "height": 30.0}, {}, {"width": 0, "height": 0}]
)
def test_sizes_may_be_texts_or_missing(tmp_path: Path, size: dict[str, Any]) -> None:
    images = [{"id": 3, "file_name": "3.png"} | size]
    image = read_split(write_split(tmp_path, {}, images=images)).images[0]
    assert (image.width, image.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("area", [..., None, 0, "80"])
@pytest.mark.parametrize("crowd", [..., None, 0, False, "0"])
def test_area_and_crowd_may_be_missing(tmp_path: Path, area: Any, crowd: Any) -> None:
    split = read_split(write_split(tmp_path, {"area": area, "iscrowd": crowd}))
    (entry,) = split.box_truth.dataset["annotations"]
    assert (entry["area"], entry["iscrowd"]) == (80, 0)
    assert remarks(split) == {}


def test_annotations_of_images_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    split = read_split(write_split(tmp_path, {}, {"image_id": 99}, {"image_id": "gone"}))
    assert remarks(split) == {"UNLISTED": 2}
    assert len(split.objects) == 1


def test_a_file_of_a_windows_program_is_read(tmp_path: Path) -> None:
    root = write_split(tmp_path, {})
    file = root / "annotations" / "instances_train2017.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_split(root)) == 2


def test_crowds_can_be_taken_as_objects(tmp_path: Path) -> None:
    root = write_split(tmp_path, {"iscrowd": 1})
    split = read_split(root, crowds="objects")
    assert len(split.images[0].target()["boxes"]) == 1
    assert split.mask_truth.dataset["annotations"][0]["iscrowd"] == 0
    assert remarks(split) == {}
    assert remarks(read_split(root)) == {"CROWD": 1}


def recipe(root: Path, **keys: Any) -> Detection:
    return Detection(data=root, backbone="resnet18", batch=1, epochs=1, warmup_steps=0, milestones=(1,), **keys)


@pytest.mark.parametrize(
    ("annotations", "parts"),
    [
        ([{"iscrowd": 1}, {"iscrowd": 1}], ("all 2 objects are marked as crowds", "--crowds objects")),
        ([], ("holds no annotations",)),
        (
            [{"bbox": [5, 5, 0, 9]}, {"image_id": 99}],
            ("none of the 2", "1 boxes without area", "1 annotations of images"),
        ),
        ([{"bbox": [0.1, 0.1, 0.2, 0.3], "segmentation": []}], ("below a pixel", "fractions of the image")),
        ([{"bbox": [60, 5, 9, 9]}, {"iscrowd": 1}], ("1 boxes without area inside", "1 crowds not trained on")),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_a_split_that_nothing_can_be_learned_from_is_refused_with_the_reason(
    tmp_path: Path, annotations: list[dict[str, Any]], parts: tuple[str, ...], empty: bool
) -> None:
    write_split(tmp_path, *annotations)
    write_split(tmp_path, {}, split="val2017")
    with pytest.raises(UserError) as refused:
        read_data(recipe(tmp_path, empty_images=empty), silent)
    for part in ("instances_train2017.json", *parts):
        assert part in str(refused.value)


def test_a_split_that_nothing_can_be_measured_on_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, {})
    write_split(tmp_path, {"iscrowd": 1}, split="val2017")
    with pytest.raises(UserError, match=r"instances_val2017\.json: all 1 objects are marked as crowds"):
        read_data(recipe(tmp_path), silent)
    learned, val = read_data(recipe(tmp_path, crowds="objects"), silent)
    assert len(learned) == len(val.objects) == 1


def test_what_is_left_out_is_told_of_each_split_in_its_own_words(tmp_path: Path) -> None:
    lines: list[str] = []
    write_split(tmp_path, {}, BOX, {"iscrowd": 1}, {"bbox": [5, 5, 0.5, 9]}, {"bbox": [30, 20, 50, 50]})
    write_split(tmp_path, {}, BOX, {"iscrowd": 1}, {"bbox": [5, 5, 0.5, 9]}, {"image_id": 9}, split="val2017")
    learned, val = read_data(recipe(tmp_path), lines.append)
    assert facts(learned, training=True)["remarks"] == {
        "objects without a mask: only their boxes are learned": 1,
        "crowds not trained on (see crowds)": 1,
        "boxes below a pixel not trained on": 1,
        "boxes clipped to their image": 1,
    }
    assert facts(val, training=False)["remarks"] == {
        "objects without a mask, in box AP alone": 1,
        "crowds ignored (see crowds)": 1,
        "annotations of images that the file does not list left out": 1,
    }
    assert "training" in lines[0]
    assert "2 images, 5 objects; 1 objects without a mask: only" in lines[0]
    assert "validation" in lines[1]
    assert "1 crowds ignored" in lines[1]


def losses(masked: list[bool], fill: int, kind: type[RoIHeads] | None = None) -> dict[str, float]:
    """Compute the losses of a small Mask R-CNN for two objects; the second object's mask is filled with `fill`."""
    torch.manual_seed(0)
    backbone = Backbone("resnet18", pretrained=False, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    recipe = Detection(sizes=(64,), max_size=96, proposals=64, width=16, hidden=32)
    detector = build_detector(recipe, backbone, 2).train()
    if kind is not None:
        detector.roi_heads.__class__ = kind
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 5:30, 5:30] = 1
    masks[1] = fill
    target = {
        "boxes": torch.tensor([[5.0, 5, 30, 30], [30, 20, 60, 60]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    empty = {name: value[:0] for name, value in target.items()} | {"masked": torch.zeros(0, dtype=torch.bool)}
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    torch.manual_seed(1)
    found = detector(images, [target | {"masked": torch.tensor(masked)}, empty])
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    return {name: float(value.detach()) for name, value in found.items()}


def test_masks_are_learned_from_the_objects_that_have_one_and_boxes_from_all() -> None:
    theirs = losses([True, True], 1, RoIHeads)
    assert losses([True, True], 1) == theirs  # bit-equal to torchvision's
    assert losses([True, True], 0)["loss_mask"] != theirs["loss_mask"]
    partly = losses([True, False], 1)
    assert partly == losses([True, False], 0)
    assert partly["loss_mask"] != theirs["loss_mask"]
    bare = losses([False, False], 1)
    assert bare["loss_mask"] == 0
    for name in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        assert theirs[name] == partly[name] == bare[name]
