"""The exports of labelling tools for segmentation can be read: each row of the table in docs/data.md."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from tool_docs import row, scripts

from scalekd.errors import UserError
from scalekd.recipes import load_as
from scalekd.tasks.segmentation import Segmentation
from scalekd.tasks.segmentation.files import read_pairs
from scalekd.tasks.segmentation.label_check import check_labels
from scalekd.tasks.segmentation.values import Coding

NAMES = tuple(f"photo-{number}" for number in range(5))
COLOURS = {"background": (0, 0, 0), "lamp": (10, 10, 128), "table": (250, 50, 83)}
CLASSES = ",".join(COLOURS)
NUMBERS = np.repeat(np.arange(3, dtype=np.uint8), 4)[None].repeat(8, 0)  # stripes of background, lamp, table


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (90, 90, 90)).save(path)


def mask(path: Path, values: NDArray[Any] = NUMBERS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def painted() -> NDArray[np.uint8]:
    """Return the mask in colours, as CVAT and Datumaro write it."""
    return np.array(list(COLOURS.values()), np.uint8)[NUMBERS]


def recipe(data: Path, flags: str, **keys: Any) -> Segmentation:
    words = shlex.split(flags)
    for place, word in enumerate(words):
        if word.endswith("zero-is-unlabelled"):
            keys["zero_is_unlabelled"] = not word.startswith("--no-")
        elif word.startswith("--"):
            key, value = word[2:].replace("-", "_"), words[place + 1]
            keys[key] = value.split(",") if key in ("classes", "map_values") else value
    return load_as(Segmentation, None, {"data": data, **keys})


def read(data: Path, flags: str, **keys: Any) -> list[NDArray[np.uint8]]:
    """Read the class indices of both splits' label images, after checking them as a run does."""
    settings, found = recipe(data, flags, **keys), list[NDArray[np.uint8]]()
    for split in (settings.train_split, settings.val_split):
        pairs = read_pairs(settings, split)
        check_labels(pairs, settings, lambda _line: None, Console(file=io.StringIO()))
        found += [Coding(settings).read(label) for label in pairs.labels]
    return found


def refusal(data: Path, flags: str = "--classes background,lamp,table") -> str:
    with pytest.raises(UserError) as error:
        read(data, flags)
    return str(error.value)


def roboflow(data: Path) -> None:
    for split in ("train", "valid", "test"):
        for name in NAMES:
            photo(data / split / f"{name}_jpg.rf.0a1b.jpg")
            mask(data / split / f"{name}_jpg.rf.0a1b_mask.png")
        (data / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, lamp\n2, table\n")


def voc(data: Path) -> None:
    for name in NAMES:
        photo(data / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(NUMBERS, "P")
        image.putpalette([channel for colour in COLOURS.values() for channel in colour])
        (data / "SegmentationClass").mkdir(exist_ok=True)
        image.save(data / "SegmentationClass" / f"{name}.png")
    lists = data / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", NAMES[:3]), ("val", NAMES[3:]), ("trainval", NAMES)):
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")


def supervisely(data: Path) -> None:
    for split in ("train", "val"):
        for name in NAMES:
            photo(data / split / "img" / f"{name}.jpg")
            mask(data / split / "masks_machine" / f"{name}.png", NUMBERS[..., None].repeat(3, 2))
            mask(data / split / "masks_human" / f"{name}.png", painted())
        (data / split / "ann").mkdir()
    (data / "meta.json").write_text("{}")


@pytest.mark.parametrize(
    ("tool", "build", "first"),
    [
        ("Roboflow, semantic", roboflow, 0),
        ("Pascal VOC | `JPEGImages/`, `SegmentationClass", voc, 0),
        ("Supervisely, export", supervisely, 1),
    ],
)
def test_the_flags_of_the_table_read_it_and_the_first_error_names_them(
    tmp_path: Path, tool: str, build: Callable[[Path], None], first: int
) -> None:
    build(tmp_path)
    flags = next(cell for cell in row(tool).split("`") if cell.startswith("--image-folder"))
    assert flags in refusal(tmp_path)
    classes = CLASSES if first == 0 else "lamp,table"
    for indices in read(tmp_path, f"{flags} --classes {classes}"):
        assert indices[0].tolist() == [0 if first == 0 else 255] * 4 + [1 - first] * 4 + [2 - first] * 4


def test_cvats_segmentation_masks_take_lists_and_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        mask(tmp_path / "SegmentationClass" / f"{name}.png", painted())
        mask(tmp_path / "SegmentationObject" / f"{name}.png", painted())
    assert "without the images; export them" in refusal(tmp_path)
    for name in NAMES:
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("\n".join(NAMES))
    label_map = ["# label:color_rgb:parts:actions", *(f"{n}:{','.join(map(str, c))}::" for n, c in COLOURS.items())]
    (tmp_path / "labelmap.txt").write_text("\n".join(label_map))
    message = refusal(tmp_path)
    assert "write the lists ImageSets/Segmentation/{split}.txt" in message
    flags = message.partition("pass ")[2].partition(";")[0]
    scripts()["split_list"](tmp_path, "SegmentationClass", "ImageSets/Segmentation")
    assert "#0a0a80" in refusal(tmp_path, f"{flags} --classes {CLASSES}")
    scripts()["colours"](tmp_path / "labelmap.txt")
    found = read(tmp_path, f"{flags} {capsys.readouterr().out}")
    assert len(found) == 5
    assert all((indices == NUMBERS).all() for indices in found)


def test_camvids_layout_is_named_with_its_colours(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in NAMES:
            photo(tmp_path / split / f"{name}.jpg")
            mask(tmp_path / f"{split}annot" / f"{name}.png", painted())
    flags = next(cell for cell in row("CVAT, CamVid").split("`") if cell.startswith("--image-folder"))
    assert flags in refusal(tmp_path)
    message = refusal(tmp_path, f"{flags} --no-zero-is-unlabelled --classes {CLASSES}")
    mapped = message.partition("--map-values ")[2].partition(" (")[0]
    for indices in read(tmp_path, f"{flags} --no-zero-is-unlabelled --classes {CLASSES} --map-values {mapped}"):
        assert (indices == NUMBERS).all()


def test_labelmes_voc_layout_takes_lists(tmp_path: Path) -> None:
    for name in NAMES:
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask(tmp_path / "SegmentationClassPNG" / f"{name}.png")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        np.save(tmp_path / "SegmentationClass" / f"{name}.npy", NUMBERS.astype(np.int32))
    (tmp_path / "class_names.txt").write_text("_background_\nlamp\ntable")
    message = refusal(tmp_path)
    assert "--label-folder SegmentationClassPNG --split-list '{split}.txt'" in message
    scripts()["split_list"](tmp_path, "SegmentationClassPNG", ".")
    flags = message.partition("pass ")[2].partition(";")[0]
    assert len(read(tmp_path, f"{flags} --classes {CLASSES}")) == 5


def test_label_studios_brush_masks_are_merged(tmp_path: Path) -> None:
    tasks = []
    for task, name in enumerate(NAMES, start=1):
        uploaded = f"0a1b-{name}.jpg"
        photo(tmp_path / "data" / "images" / ("training" if task < 4 else "validation") / uploaded)
        for number, label in enumerate(("lamp", "table"), start=1):
            drawn = np.equal(NUMBERS, number).astype(np.uint8) * 255
            mask(tmp_path / "masks" / f"task-{task}-annotation-{task + 7}-by-1-tag-{label}-0.png", drawn)
        tasks.append({"id": task, "data": {"image": f"/data/upload/1/{uploaded}"}, "annotations": [{"id": task + 7}]})
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert "Label Studio's brush export" in refusal(tmp_path / "masks")
    merged = tmp_path / "merged"
    scripts()["merge_brush"](tmp_path / "masks", tmp_path / "tasks.json", ["lamp", "table"], merged)
    for split in ("training", "validation"):
        for image in (tmp_path / "data" / "images" / split).iterdir():
            target = tmp_path / "data" / "annotations" / split / f"{image.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            (merged / target.name).rename(target)
    for indices in read(tmp_path / "data", "--classes lamp,table"):
        assert indices[0].tolist() == [255] * 4 + [0] * 4 + [1] * 4


def test_one_object_against_the_rest(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        for name in NAMES:
            photo(tmp_path / "images" / split / f"{name}.jpg")
            mask(tmp_path / "annotations" / split / f"{name}.png", (NUMBERS > 0).astype(np.uint8) * 255)
    flags = next(cell for cell in row("one object against").split("`") if cell.startswith("--classes"))
    assert "pass --map-values 255=1 --no-zero-is-unlabelled" in refusal(tmp_path, "--classes rest,object")
    assert all((indices == (NUMBERS > 0)).all() for indices in read(tmp_path, flags))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("photo-0.json", "as LabelMe, Label Studio and COCO write them"),
        ("annotations.xml", "holds CVAT's polygons (annotations.xml)"),
        ("ds0/ann/photo-0.jpg.json", "Supervisely project whose labels are JSON"),
        ("labels/train/photo-0.txt", "YOLO's labels"),
    ],
)
def test_polygons_are_refused_with_their_tool(tmp_path: Path, file: str, told: str) -> None:
    photo(tmp_path / "ds0" / "img" / "photo-0.jpg" if "ds0" in file else tmp_path / "photo-0.jpg")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    assert told in refusal(tmp_path)
