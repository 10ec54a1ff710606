"""Which categories become classes, and what two annotation files must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coco_data import write_split

from scalekd.errors import UserError
from scalekd.tasks.detection import Detection
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.reading import read_data, read_validation

Category = tuple[Any, str, str | None]


def categories(*rows: Category) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} | ({"supercategory": above} if above else {}) for number, name, above in rows]


def recipe(root: Path) -> Detection:
    return Detection(data=root, backbone="resnet18", batch=1, epochs=1, warmup_steps=0, milestones=(1,))


def read(
    root: Path, train: list[Category], val: list[Category], used: tuple[list[Any], list[Any]]
) -> tuple[CocoSplit, CocoSplit, list[str]]:
    """Read both splits with these categories; each used category has one object."""
    for split, rows, ids in (("train2017", train, used[0]), ("val2017", val, used[1])):
        write_split(root, *({"category_id": number} for number in ids), split=split, categories=categories(*rows))
    lines: list[str] = []
    return *read_data(recipe(root), lines.append), lines


@pytest.mark.parametrize(
    ("rows", "used"),
    [
        (
            [(0, "fish", "none"), (1, "fish", "fish"), (2, "trap", "fish")],
            [1, 2],
        ),  # Roboflow: the project has the name of a class
        ([(0, "my-project", "none"), (1, "fish", "my-project"), (2, "trap", "my-project")], [1, 2]),
        ([(1, "fish", "animals"), (2, "trap", "tools"), (8, "animals", None), (9, "tools", "animals")], [1, 2]),
        ([("p", "all", ""), ("x", "fish", "all"), ("y", "trap", "all")], ["x", "y"]),
        ([(0, "fish", None), (1, "fish", None), (2, "trap", None)], [1, 2]),
    ],
)
def test_an_unused_parent_of_others_is_left_out_with_a_line(
    tmp_path: Path, rows: list[Category], used: list[Any]
) -> None:
    train, val, lines = read(tmp_path, rows, rows, (used, used))
    assert train.classes == val.classes == ("fish", "trap")
    assert train.images[0].target()["labels"].tolist() == [1, 2]
    told = [line for line in lines if "has no objects" in line]
    assert len(told) == len(rows) - 2
    assert all("left out" in line for line in told)


def test_a_parent_with_objects_in_either_split_is_a_class(tmp_path: Path) -> None:
    rows: list[Category] = [(0, "vehicle", None), (1, "car", "vehicle")]
    for used in (([1], [0, 1]), ([0, 1], [1])):
        train, val, lines = read(tmp_path, rows, rows, used)
        assert train.classes == val.classes == ("vehicle", "car")
        assert not any("left out" in line for line in lines if "category" in line)


def test_categories_without_objects_that_are_no_parents_stay(tmp_path: Path) -> None:
    rows: list[Category] = [(1, "person", "person"), (2, "car", "vehicle"), (3, "bus", "vehicle")]
    train, _, _ = read(tmp_path, rows, rows, ([2], [2]))
    assert train.classes == ("person", "car", "bus")


def test_validation_labels_follow_the_training_files_names(tmp_path: Path) -> None:
    _, val, _ = read(tmp_path, [(1, "a", None), (2, "b", None)], [(1, "b", None), (5, "a", None)], ([1, 2], [1, 5]))
    assert val.classes == ("a", "b")
    assert [instance.label for instance in val.objects] == [2, 1]
    assert [entry["category_id"] for entry in val.box_truth.dataset["annotations"]] == [2, 1]


def test_a_validation_file_may_lack_classes_and_may_list_unused_ones(tmp_path: Path) -> None:
    _, val, lines = read(
        tmp_path, [(1, "a", None), (2, "b", None)], [(4, "b", None), (5, "other", None)], ([1, 2], [4])
    )
    assert [instance.label for instance in val.objects] == [2]
    assert any("does not list a: 1 of 2 classes are not measured" in line for line in lines)


@pytest.mark.parametrize(
    ("val", "used", "parts"),
    [
        ([(1, "a", None), (9, "c", None)], [1, 9], ("'c' (1 objects)", "known are a, b")),
        ([(1, "A", None)], [1, 1], ("'A' (2 objects)", "instances_train2017.json")),
        ([(1, "a", None), (2, "a", None)], [1, 2], ("1 and 2 are both called 'a'",)),
        ([(1, "a", None), (1, "b", None)], [1], ("the same id",)),
        ([(1, "a", None)], [1, 6], ("is of category 6", "it lists 1")),
    ],
)
def test_objects_of_classes_that_training_lacks_are_refused(
    tmp_path: Path, val: list[Category], used: list[Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, [(1, "a", None), (2, "b", None)], val, ([1, 2], used))
    for part in ("instances_val2017.json", *parts):
        assert part in str(refused.value)


def test_a_detector_is_measured_on_files_that_hold_a_part_of_its_classes(tmp_path: Path) -> None:
    write_split(tmp_path, {"category_id": 3}, split="val2017", categories=categories((3, "b", "top"), (0, "top", None)))
    lines: list[str] = []
    val = read_validation(recipe(tmp_path), ("a", "b"), lines.append)
    assert [instance.label for instance in val.objects] == [2]
    assert any("does not list a" in line for line in lines)
    with pytest.raises(UserError, match=r"other categories than the detector was trained for: 'b' \(1 objects\)"):
        read_validation(recipe(tmp_path), ("a",), lines.append)
