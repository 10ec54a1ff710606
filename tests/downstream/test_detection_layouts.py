"""The exports of each labelling tool in the docs' table can be read, and errors name other layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from coco_data import HEIGHT, WIDTH, silent, write_image

from scalekd.errors import UserError
from scalekd.tasks.detection import Detection
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.reading import read_data

DOCS = Path(__file__).parents[2] / "docs" / "transfer-detection.md"
POLYGON = [4.0, 5.0, 14.0, 5.0, 14.0, 13.0, 4.0, 13.0]
BOX = [4.0, 5.0, 10.0, 8.0]
BRUSH = {"counts": [5 + 4 * HEIGHT, 8, WIDTH * HEIGHT - 13 - 4 * HEIGHT], "size": [HEIGHT, WIDTH]}
NAMES = tuple(f"photo-{number}.jpg" for number in range(5))


def coco(names: Sequence[str], categories: list[dict[str, Any]], mask: Any = (), first: int = 0, **entry: Any) -> str:
    """Write an annotation file with an object of the last category in each image."""
    sides = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": first + index, "file_name": name} | sides for index, name in enumerate(names)]
    objects = [
        {"id": i, "image_id": i, "category_id": categories[-1]["id"], "bbox": BOX, "area": 80, "iscrowd": 0}
        | {"segmentation": mask}
        | entry
        for i in range(first, first + len(names))
    ]
    return json.dumps({"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": objects})


def put(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def photos(folder: Path, split: str = "") -> list[str]:
    """Write images whose names contain the split's name."""
    names = [f"{split}{name}" for name in NAMES]
    for name in names:
        write_image(folder / name)
    return names


LAMP = [{"id": 1, "name": "lamp", "supercategory": ""}]


def roboflow(root: Path) -> list[str]:
    above = [{"id": 0, "name": "lamps", "supercategory": "none"}, {"id": 1, "name": "lamp", "supercategory": "lamps"}]
    for split in ("train", "valid", "test"):
        put(root / split / "_annotations.coco.json", coco(photos(root / split, split), above))
    return ["train", "valid"]


def cvat_subsets(root: Path) -> list[str]:
    for split in ("Train", "Validation"):
        names = photos(root / "images" / split, split)
        put(root / "annotations" / f"instances_{split}.json", coco(names, LAMP, [POLYGON], first=1))
    return ["Train", "Validation"]


def supervisely_coco(root: Path) -> list[str]:
    for split in ("train", "val"):
        names = photos(root / split / "images", split)
        put(root / split / "annotations" / "instances.json", coco(names, LAMP, [POLYGON]))
    return ["train", "val"]


def fiftyone(root: Path) -> list[str]:
    for split in ("train", "val"):
        names = photos(root / split / "data", split)
        put(root / split / "labels.json", coco(names, LAMP, [POLYGON], first=1))
    return ["train", "val"]


def files_in_one_folder(root: Path) -> list[str]:
    for split in ("train", "val"):
        put(root / f"{split}.json", coco(photos(root / "images", split), LAMP))
    return ["train.json", "val.json"]


def learned(root: Path, splits: Sequence[str], **keys: Any) -> tuple[CocoSplit, CocoSplit]:
    named = {"train_split": splits[0], "val_split": splits[1], "milestones": (1,)}
    recipe = Detection(data=root, backbone="resnet18", batch=1, epochs=1, warmup_steps=0, **named | keys)
    return read_data(recipe, silent)


@pytest.mark.parametrize("export", [roboflow, cvat_subsets, supervisely_coco, fiftyone, files_in_one_folder])
def test_exports_in_cocos_format_are_read_where_they_lie(tmp_path: Path, export: Callable[[Path], list[str]]) -> None:
    train, val = learned(tmp_path, export(tmp_path))
    assert len(train) == len(val) == len(train.objects) == len(val.objects) == len(NAMES)
    assert train.classes == val.classes == ("lamp",)
    assert train.objects[0].box == (4, 5, 14, 13)
    assert train.masked == (export not in {roboflow, files_in_one_folder})


@pytest.fixture(scope="module")
def convert() -> dict[str, Any]:
    """Return the functions shown in the docs."""
    (code,) = re.findall(r"```python\n(\"\"\"Writes annotations.*?)```", DOCS.read_text(), re.DOTALL)
    functions: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), functions)
    return functions


def cvat(root: Path) -> Path:
    """Label Studio's export of masks drawn with a brush."""
    names = photos(root / "images" / "default")
    return put(root / "annotations" / "instances_default.json", coco(names, LAMP, BRUSH, first=1, iscrowd=1))


def label_studio(root: Path) -> Path:
    names = photos(root / "images")
    return put(root / "result.json", coco([f"images/{name}" for name in names], [{"id": 0, "name": "lamp"}], ignore=0))


def label_studio_on_windows(root: Path) -> Path:
    names = photos(root / "images")
    return put(root / "result.json", coco([f"images\\{name}" for name in names], [{"id": 0, "name": "lamp"}]))


@pytest.mark.parametrize("export", [cvat, label_studio, label_studio_on_windows])
def test_one_file_for_all_images_is_parted_as_the_docs_show(
    tmp_path: Path, convert: dict[str, Any], export: Callable[[Path], Path]
) -> None:
    file = export(tmp_path)
    name = str(file.relative_to(tmp_path))
    with pytest.raises(UserError, match="5 of its 5 images are also training images"):
        learned(tmp_path, (name, name), crowds="objects")
    convert["part"](file)
    if export is cvat:
        with pytest.raises(UserError, match="all 4 objects are marked as crowds"):
            learned(tmp_path, ("instances_train", "instances_val"))
    train, val = learned(tmp_path, ("instances_train", "instances_val"), crowds="objects")
    assert (len(train), len(val)) == (4, 1)
    assert {image.path.name for image in (*train.images, *val.images)} == set(NAMES)
    assert train.masked == (export is cvat)
    assert train.objects[0].label == 1


def ultralytics(root: Path) -> list[str]:
    put(root / "data.yaml", yaml.safe_dump({"train": "images/train", "names": {0: "lamp", 1: "cup"}}))
    for split in ("train", "val"):
        for name in photos(root / "images" / split, split):
            put(root / "labels" / split / f"{Path(name).stem}.txt", "1 0.225 0.3 0.25 0.26666667\n")
    return ["train", "val"]


def roboflow_yolo(root: Path) -> list[str]:
    """Polygons, and an image without objects, which has no annotation file."""
    put(root / "data.yaml", yaml.safe_dump({"nc": 2, "names": ["lamp", "cup"]}))
    for split in ("train", "valid"):
        for name in photos(root / split / "images", split)[1:]:
            points = " ".join(str(p / side) for p, side in zip(POLYGON, (WIDTH, HEIGHT) * 4, strict=True))
            put(root / split / "labels" / f"{Path(name).stem}.txt", f"1 {points}\n")
    return ["train", "valid"]


def voc(root: Path) -> list[str]:
    for split in ("train", "val"):
        names = photos(root / "JPEGImages", split)
        put(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{Path(name).stem}\n" for name in names))
        for name in names:
            box = "<xmin>4</xmin><ymin>5</ymin><xmax>14</xmax><ymax>13</ymax>"
            one = f"<object><name>cup</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
            text = f"<annotation><filename>{name}</filename><size><width>40</width></size>{one}</annotation>"
            put(root / "Annotations" / f"{Path(name).stem}.xml", text)
    return ["train", "val"]


def labelme(root: Path) -> list[str]:
    points = [[4.0, 5.0], [14.0, 5.0], [14.0, 13.0], [4.0, 13.0]]
    polygon: dict[str, Any] = {"label": "cup", "points": points, "shape_type": "polygon", "group_id": None, "flags": {}}
    rectangle = polygon | {"points": [points[2], points[0]], "shape_type": "rectangle"}
    for index, name in enumerate(photos(root)):
        shapes = [polygon if index else rectangle]
        put(root / f"{Path(name).stem}.json", json.dumps({"version": "5.5.0", "shapes": shapes, "imagePath": name}))
    return ["instances_train", "instances_val"]


def supervisely(root: Path) -> list[str]:
    put(root / "meta.json", "{}")
    for name in photos(root / "ds0" / "img"):
        put(root / "ds0" / "ann" / f"{name}.json", json.dumps({"objects": []}))
    return ["ds0", "ds0"]


FOREIGN = {
    "YOLO's layout": (ultralytics, roboflow_yolo),
    "Pascal VOC's layout": (voc,),
    "LabelMe's layout": (labelme,),
    "Supervisely's own layout": (supervisely,),
}


@pytest.mark.parametrize(
    ("layout", "export"), [(name, export) for name, exports in FOREIGN.items() for export in exports]
)
def test_other_layouts_are_refused_by_name_and_read_once_converted(
    tmp_path: Path, convert: dict[str, Any], layout: str, export: Callable[[Path], list[str]]
) -> None:
    splits = export(tmp_path)
    with pytest.raises(UserError, match=f"in {layout}, which is not read: convert it"):
        learned(tmp_path, splits)
    if layout.startswith("Supervisely"):
        return
    if layout.startswith("LabelMe"):
        convert["from_labelme"](tmp_path)
        convert["part"](tmp_path / "annotations" / "instances_all.json")
    else:
        for split in splits:
            convert["from_voc" if layout.startswith("Pascal") else "from_yolo"](tmp_path, split)
    train, val = learned(tmp_path, splits, empty_images=True)
    objects = (*train.objects, *val.objects)
    assert train.classes == val.classes == ("cup",)
    counts = {"labelme": (5, 4), "roboflow_yolo": (8, 8)}  # objects, and masks
    count, masks = counts.get(export.__name__, (10, 0))
    assert (len(objects), sum(instance.mask is not None for instance in objects)) == (count, masks)
    for instance in objects:
        assert instance.box == pytest.approx((4, 5, 14, 13))


def test_files_that_are_there_are_named_where_a_split_is_not(tmp_path: Path) -> None:
    roboflow(tmp_path)
    with pytest.raises(UserError) as refused:
        learned(tmp_path, ("train2017", "val2017"))
    for part in ("instances_train2017.json", "train/_annotations.coco.json", "train_split"):
        assert part in str(refused.value)
    with pytest.raises(UserError, match=r"no such file: .*else\.json; found is .*valid/_annotations"):
        learned(tmp_path, ("else.json", "valid"))
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        learned(tmp_path / "nowhere", ("train", "valid"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="needed are annotations in COCO's format"):
        learned(tmp_path / "empty", ("train", "valid"))
    put(tmp_path / "tasks.json", json.dumps([{"id": 1, "annotations": []}]))  # Label Studio's native format
    with pytest.raises(UserError, match=r"tasks\.json holds no object with images, annotations and categories"):
        learned(tmp_path, ("tasks.json", "valid"))


def test_each_row_of_the_table_is_tried() -> None:
    table = DOCS.read_text().partition("### What each tool exports")[2].partition("```")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == 11
    tools = (
        "Roboflow",
        "CVAT",
        "CVAT",
        "Label Studio",
        "Supervisely",
        "FiftyOne",
        "any",
        "YOLO",
        "Pascal",
        "LabelMe",
        "Super",
    )
    assert all(row.startswith(f"| {tool}") for row, tool in zip(rows, tools, strict=True))
