"""Exports of labelling tools for classification: tests each row of the table in docs/data.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tool_docs import row, scripts

from scalekd.data import read_split, read_splits
from scalekd.errors import UserError
from scalekd.recipes import SourceKeys

CLASSES = ("cat", "dog")
NAMES = tuple(f"photo {number}" for number in range(5))


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (90, 90, 90)).save(path)
    return path


def folders(data: Path, *splits: str) -> None:
    for split in splits or ("",):
        for label in CLASSES:
            for name in NAMES:
                photo(data / split / label / f"{name}.jpg")


def refusal(data: Path, split: str) -> str:
    with pytest.raises(UserError) as error:
        read_split(str(data), split)
    return str(error.value)


@pytest.mark.parametrize(
    ("tool", "splits", "flags"),
    [
        ("Roboflow, folder structure", ("train", "valid", "test"), "--val-split valid"),
        ("Ultralytics YOLO", ("train", "test"), "--val-split test"),
    ],
)
def test_splits_that_are_called_otherwise_are_named(
    tmp_path: Path, tool: str, splits: tuple[str, ...], flags: str
) -> None:
    folders(tmp_path, *splits)
    assert flags in row(tool)
    assert f"; pass {flags}; it holds" in refusal(tmp_path, "val")
    for split in splits:
        assert len(read_split(str(tmp_path), split)) == 10


def test_ultralytics_folders_are_read_with_what_cvat_adds(tmp_path: Path) -> None:
    folders(tmp_path, "train", "val")
    (tmp_path / "train" / "labels.json").write_text("{}")
    assert read_split(str(tmp_path), "train").classes == CLASSES


def roboflow_csv(data: Path) -> str:
    for split in ("train", "valid", "test"):
        lines = ["filename, cat, dog"]
        for index, name in enumerate(NAMES):
            photo(data / split / f"{split} {name}.jpg")
            lines.append(f"{split} {name}.jpg, {int(index % 2 == 0)}, {int(index != 2) if index else 0}")
        (data / split / "_classes.csv").write_text("\n".join(lines))
    return "Roboflow's CSV of labels"


def test_roboflows_list_of_several_classes_is_read_as_it_is(tmp_path: Path) -> None:
    roboflow_csv(tmp_path)
    text = row("Roboflow, multi-label CSV")
    names = {key: re.findall(rf"--{key} (\S+_classes.csv)", text)[0] for key in ("train-split", "val-split")}
    train, val = read_splits(
        tmp_path, names["train-split"], names["val-split"], SourceKeys(multi_label="--multi-label" in text)
    )
    assert train.classes == val.classes == CLASSES
    assert [np.asarray(train.target(index)).tolist() for index in range(3)] == [[1, 0], [0, 1], [1, 0]]
    with train.open(0) as image:
        assert image.size == (8, 6)


def labelme(data: Path) -> str:
    for index, name in enumerate(NAMES):
        photo(data / f"{name}.jpg")
        flags = {label: label == CLASSES[index % 2] for label in CLASSES}
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": flags,
            "shapes": [],
            "imagePath": f"{name}.jpg",
            "imageData": None,
        }
        (data / f"{name}.json").write_text(json.dumps(content))
    return "labels as JSON"


def supervisely(data: Path) -> str:
    for index, name in enumerate(NAMES):
        photo(data / "ds0" / "img" / f"{name}.jpg")
        content: dict[str, Any] = {
            "size": {"height": 6, "width": 8},
            "tags": [{"name": CLASSES[index % 2]}],
            "objects": [],
        }
        (data / "ds0" / "ann").mkdir(exist_ok=True)
        (data / "ds0" / "ann" / f"{name}.jpg.json").write_text(json.dumps(content))
    (data / "meta.json").write_text("{}")
    return "a Supervisely project"


def label_studio(data: Path) -> str:
    tasks = []
    for index, name in enumerate(NAMES):
        photo(data / f"1f2e-{name}.jpg")
        result = [{"type": "choices", "from_name": "choice", "value": {"choices": [CLASSES[index % 2]]}}]
        tasks.append(
            {"id": index, "data": {"image": f"/data/upload/1/1f2e-{name}.jpg"}, "annotations": [{"result": result}]}
        )
    tasks.append({"id": 9, "data": {"image": "/data/upload/1/skipped.jpg"}, "annotations": []})
    (data / "tasks.json").write_text(json.dumps(tasks))
    return "labels as JSON"


def voc(data: Path) -> str:
    (data / "ImageSets" / "Main").mkdir(parents=True)
    names = [name.replace(" ", "_") for name in NAMES]
    for index, label in enumerate(CLASSES):
        lines = [f"{name} {1 if number % 2 == index else -1:2d}" for number, name in enumerate(names)]
        (data / "ImageSets" / "Main" / f"{label}_trainval.txt").write_text("\n".join(lines))
    for name in names:
        photo(data / "JPEGImages" / f"{name}.jpg")
    return "Pascal VOC's layout"


def classes_only(data: Path) -> str:
    folders(data)
    return ""


@pytest.mark.parametrize(
    ("tool", "build", "script", "count"),
    [
        ("CVAT, ImageNet", classes_only, "from_folders", 10),
        ("Roboflow, multi-label CSV", roboflow_csv, "from_roboflow", 12),
        ("Label Studio, JSON", label_studio, "from_label_studio", 5),
        ("LabelMe | a JSON", labelme, "from_labelme", 5),
        ("Supervisely | `meta", supervisely, "from_supervisely", 5),
        ("Pascal VOC | `JPEGImages/`, `ImageSets/Main", voc, "from_voc", 5),
    ],
)
def test_what_names_no_class_by_a_folder_becomes_a_list(
    tmp_path: Path, tool: str, build: Callable[[Path], str], script: str, count: int
) -> None:
    tmp_path.joinpath("x").mkdir()
    data = tmp_path / "x"
    looks = build(data)
    assert script in row(tool)
    if looks:
        assert f"It looks like {looks}" in refusal(data, "train")
    arguments = (data, data / "tasks.json") if script == "from_label_studio" else (data,)
    scripts()[script](*arguments)
    train, val = (read_split(str(data / "list.csv"), split) for split in ("train", "val"))
    assert len(train) + len(val) == count
    assert train.classes == CLASSES
    with train.open(0) as image:
        assert image.size == (8, 6)


def test_labels_of_a_list_are_those_of_the_export(tmp_path: Path) -> None:
    labelme(tmp_path)
    scripts()["from_labelme"](tmp_path)
    rows = dict(line.split(",")[:2] for line in (tmp_path / "list.csv").read_text().splitlines()[1:])
    assert rows == {f"{name}.jpg": CLASSES[index % 2] for index, name in enumerate(NAMES)}
