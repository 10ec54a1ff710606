from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_data import HEIGHT, POLYGON, WIDTH, read_split, remarks, write_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scalekd.data import Key
from scalekd.errors import UserError
from scalekd.tasks.detection.data import CocoDataset, collate

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a split of two images; its categories are 2 and 7, named a and b."""
    return partial(write_split, tmp_path)


read = read_split


def test_category_ids_with_gaps_become_labels_from_one(write: Write) -> None:
    split = read(write({}, {"category_id": 7}))
    assert split.classes == ("a", "b")
    assert split.images[0].target()["labels"].tolist() == [1, 2]


def uncompressed(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    counts, value, run = [], 0, 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts.append(run)
            value, run = int(pixel), 0
        run += 1
    return {"counts": [*counts, run], "size": [HEIGHT, WIDTH]}


def test_polygons_and_both_run_length_encodings_give_the_same_mask(write: Write) -> None:
    from faster_coco_eval.core import mask as rle_tools

    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[5:13, 4:14] = 1
    compressed = rle_tools.encode(np.asfortranarray(wanted))
    compressed["counts"] = getattr(compressed["counts"], "decode", lambda: compressed["counts"])()
    masks = (POLYGON, uncompressed(wanted), compressed)
    split = read(write(*({"segmentation": mask} for mask in masks)))
    target = split.images[0].target()
    assert target["masks"].dtype == torch.uint8
    for mask in target["masks"]:
        assert np.array_equal(mask.numpy(), wanted)


def test_crowds_are_kept_for_the_evaluation_and_not_trained_on(write: Write) -> None:
    split = read(write({"iscrowd": 1}, {}))
    assert len(split.images[0].target()["boxes"]) == 1
    for truth in (split.box_truth, split.mask_truth):
        assert [annotation["iscrowd"] for annotation in truth.dataset["annotations"]] == [1, 0]
    assert remarks(split) == {"CROWD": 1}


def test_boxes_are_clipped_to_their_image_or_left_out_and_counted(write: Write) -> None:
    beyond = {"bbox": [30, 20, 50, 50]}
    without_area = {"bbox": [5, 5, 0, 9]}
    outside = {"bbox": [60, 5, 10, 10]}
    sliver = {"bbox": [5, 5, 0.5, 9]}
    line = {"segmentation": [[1, 1, 9, 9]]}
    split = read(write({}, beyond, without_area, outside, sliver, line))
    boxes = split.images[0].target()["boxes"].tolist()
    assert boxes == [[4, 5, 14, 13], [30, 20, WIDTH, HEIGHT], [4, 5, 14, 13]]
    assert remarks(split) == {"CLIPPED": 1, "FLAT": 2, "SMALL": 1, "LINE": 1}
    assert [annotation["id"] for annotation in split.box_truth.dataset["annotations"]] == [1, 2, 3, 4]
    assert split.box_truth.dataset["annotations"][1]["bbox"] == [30, 20, 50, 50]


def test_images_without_objects_have_empty_targets_and_can_be_left_out(write: Write) -> None:
    split = read(write({}))
    target = split.images[1].target()
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, HEIGHT, WIDTH)
    assert len(split) == 2
    assert [image.path.name for image in split.without_empty().images] == ["3.png"]


@pytest.mark.parametrize(
    ("annotation", "parts"),
    [
        ({"category_id": 3}, ("category 3",)),
        ({"bbox": [1, 2, 3]}, ("[1, 2, 3]", "[x, y, width, height]")),
        ({"bbox": [1, 2, float("nan"), 4]}, ("box",)),
        ({"segmentation": {"counts": [0, 9], "size": [9, 9]}}, ("[9, 9]", "[30, 40]")),
        ({"segmentation": {"counts": [0, 9], "size": [HEIGHT, WIDTH]}}, ("annotation 1", "cannot be decoded")),
        ({"segmentation": {"counts": "zzzz", "size": [HEIGHT, WIDTH]}}, ("cannot be decoded",)),
        ({"segmentation": "drawn"}, ("segmentation is 'drawn'", "polygons")),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 9]]}, ("polygon", "1e+09")),
    ],
)
def test_an_annotation_that_fits_nothing_is_refused_in_one_line(
    write: Write, annotation: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        read(write(annotation))
    message = str(refused.value)
    assert "\n" not in message
    for part in ("instances_train2017.json", *parts):
        assert part in message


def test_files_that_are_not_there_or_no_annotations_are_refused(write: Write, tmp_path: Path) -> None:
    root = write({})
    (root / "train2017" / "8.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 images .* missing, the first .*8\.png"):
        read(root)
    with pytest.raises(UserError, match="the list 'images'"):
        read(write({}, images=None))
    for name in ("../3.png", "..\\3.png", "/3.png", "C:\\images\\3.png"):
        outside = {"id": 3, "file_name": name, "width": WIDTH, "height": HEIGHT}
        with pytest.raises(UserError, match=r"3\.png', which is outside"):
            read(write({}, images=[outside]))
    with pytest.raises(UserError, match="a URL; export the images"):
        read(write({}, images=[outside | {"file_name": "https://host/3.png"}]))
    with pytest.raises(UserError, match="unique name and id"):
        read(write({}, categories=[{"id": 2, "name": "a"}, {"id": 2, "name": "b"}]))
    (root / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        read(root)
    with pytest.raises(UserError, match=r"no such file: .*instances_val2017\.json"):
        read(tmp_path, "val2017")


def test_a_flip_moves_image_boxes_and_masks_together(write: Write) -> None:
    split = read(write({}))
    plain = CocoDataset(split, learning=True)[Key(0, 0)]
    flipped = CocoDataset(split, learning=True, flip=1.0)[Key(0, 0)]
    assert plain.image is not None
    assert flipped.image is not None
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert flipped.target["boxes"].tolist() == [[WIDTH - 14, 5, WIDTH - 4, 13]]
    rows, columns = flipped.target["masks"][0].nonzero().unbind(1)
    assert (int(columns.min()), int(columns.max())) == (WIDTH - 14, WIDTH - 5)
    assert (int(rows.min()), int(rows.max())) == (5, 12)


def test_whether_an_image_is_flipped_follows_from_seed_epoch_and_index(write: Write) -> None:
    split = read(write({}, {"image_id": 8}))
    keys = [Key(epoch, index) for epoch in range(8) for index in (0, 1)]

    def lefts(seed: int) -> list[float]:
        dataset = CocoDataset(split, seed=seed, flip=0.5, learning=True)
        return [float(dataset[key].target["boxes"][0, 0]) for key in keys]

    assert lefts(0) == lefts(0)
    assert len(set(lefts(0))) == 2
    assert lefts(0) != lefts(1)


def test_an_image_of_another_size_than_stated_is_replaced_in_training_and_left_out_in_evaluation(write: Write) -> None:
    root = write({}, {"image_id": 8})
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2017" / "3.png")
    split = read(root)
    replaced = CocoDataset(split, learning=True)[Key(0, 0)]
    assert replaced.image_index == 1
    assert "30x40, the annotations say 40x30" in replaced.corrupt[str(root / "train2017" / "3.png")]
    batch = collate([CocoDataset(split)[Key(0, 0)]])
    assert batch.images == []
    assert "3.png" in next(iter(batch.corrupt))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf"), -0.5]),
    st.sampled_from(["", "a", "\x00", "../3.png", "\ud800"]),
    st.sampled_from([[], [[]], [1], {}, {"counts": "o0", "size": [HEIGHT, WIDTH]}]),
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in a JSON document."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.fixture
def valid(write: Write) -> tuple[Path, str]:
    """Return a folder and the content of its annotation file."""
    root = write({}, {"category_id": 7, "segmentation": uncompressed(np.ones((HEIGHT, WIDTH)))})
    return root, (root / "annotations" / "instances_train2017.json").read_text()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_corrupt_file_is_refused_in_one_line_or_read(valid: tuple[Path, str], data: st.DataObject) -> None:
    root, text = valid
    content = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(list(places(content)) or [("images",)]))
        parent = content
        for key in way:
            parent = parent[key]
        if data.draw(st.booleans()) and isinstance(parent, dict):
            parent.pop(last, None)
        else:
            parent[last] = data.draw(VALUES)
    corrupt = json.dumps(content).encode()[: data.draw(st.sampled_from([None, None, None, 300]))]
    (root / "annotations" / "instances_train2017.json").write_bytes(corrupt)
    try:
        split = read(root)
    except UserError as error:
        refused = str(error)
    else:
        targets = [image.target() for image in split.images if image.width * image.height < 10**4]
        assert all(target["labels"].max() <= len(split.classes) for target in targets if len(target["labels"]))
        return
    assert "\n" not in refused
    assert "instances_train2017.json" in refused
