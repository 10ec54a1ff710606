"""Label images as tools write them: which are read, which are refused before training, and which flags fix that."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from scalekd.errors import UserError
from scalekd.recipes import load_as
from scalekd.tasks.segmentation import Segmentation, label_check
from scalekd.tasks.segmentation.files import Pairs, read_pairs
from scalekd.tasks.segmentation.label_check import check_labels
from scalekd.tasks.segmentation.measuring import palette
from scalekd.tasks.segmentation.values import Coding

Mask = NDArray[Any]


def write(folder: Path, masks: list[Mask | Image.Image], suffix: str = "png") -> Path:
    """Write a training split with one image per mask, in ADE20K's layout."""
    for kind in ("images", "annotations"):
        (folder / kind / "training").mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(folder / "annotations" / "training" / f"{number}.{suffix}")
        Image.new("RGB", image.size, (90, 90, 90)).save(folder / "images" / "training" / f"{number}.jpg")
    return folder


def stripes(*values: int, dtype: type = np.uint8) -> Mask:
    """Return a mask of 8x12 with a stripe of each value."""
    return np.repeat(np.array(values, dtype), 12 // len(values))[None].repeat(8, 0)


def settings(data: Path, classes: tuple[str, ...] = ("rest", "object"), **keys: object) -> Segmentation:
    return load_as(Segmentation, None, {"data": data, "classes": list(classes), **keys})


def checked(data: Path, classes: tuple[str, ...] = ("rest", "object"), **keys: object) -> tuple[Pairs, list[str]]:
    """Check the training split; return its pairs and the lines printed about its labels."""
    recipe, said = settings(data, classes, **keys), list[str]()
    pairs = read_pairs(recipe, "training")
    check_labels(pairs, recipe, said.append, Console(file=io.StringIO()))
    return pairs, said


def refused(data: Path, *parts: str, classes: tuple[str, ...] = ("rest", "object"), **keys: object) -> None:
    with pytest.raises(UserError) as error:
        checked(data, classes, **keys)
    for part in parts:
        assert part in str(error.value)


def given(flags: str) -> dict[str, Any]:
    """Return the keys of the flags that a message names."""
    words, keys = flags.split(), dict[str, Any]()
    for place, word in enumerate(words):
        if word == "--map-values":
            keys["map_values"] = words[place + 1].strip("'").split(",")
        elif word.endswith("zero-is-unlabelled"):
            keys["zero_is_unlabelled"] = not word.startswith("--no-")
    return keys


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 255), np.uint8), ((0, 65535), np.uint16), ((0, 128), np.uint8), ((1, 255), np.uint8)]
)
def test_the_flags_that_a_refusal_names_mend_two_values(
    tmp_path: Path, values: tuple[int, int], dtype: type, zero: bool
) -> None:
    data = write(tmp_path, [stripes(*values, dtype=dtype)] * 2)
    with pytest.raises(UserError) as error:
        checked(data, zero_is_unlabelled=zero)
    message = str(error.value)
    for value in values:
        assert f"{value} (96 pixels in 2 files)" in message
    pairs, said = checked(data, **given(message.rpartition("pass ")[2]))
    assert said == ["labels    training: 2 of 2 classes, 100.0% of the pixels labelled (all 2 label images counted)"]
    recipe = settings(data, **given(message.rpartition("pass ")[2]))
    assert Coding(recipe).read(pairs.labels[0])[0].tolist() == [0] * 6 + [1] * 6


def test_zero_that_is_the_background_is_not_lost(tmp_path: Path) -> None:
    data = write(tmp_path, [stripes(0, 1)])
    refused(data, "only 'rest' occurs", "0 counts as unlabelled", "if 0 is 'rest', pass --no-zero-is-unlabelled")
    checked(data, zero_is_unlabelled=False)
    refused(write(tmp_path / "empty", [stripes(0)]), "no pixel has a class", "0 (96 pixels in 1 files)")
    refused(write(tmp_path / "void", [stripes(255)]), "no pixel has a class", "255 counts as unlabelled")
    refused(write(tmp_path / "one", [stripes(0)]), "only 'rest' occurs", zero_is_unlabelled=False)


def test_a_class_that_never_occurs_is_a_warning(tmp_path: Path) -> None:
    classes = ("background", "cat", "dog")
    data = write(tmp_path, [stripes(0, 1, 2)] * 3)
    said = checked(data, classes)[1]
    assert said[0] == "labels    training: 2 of 3 classes, 66.7% of the pixels labelled (all 3 label images counted)"
    assert "warning: no pixel of training is labelled dog" in said[1]
    assert said[1].endswith("if 0 is 'background', pass --no-zero-is-unlabelled")
    assert len(checked(data, classes, zero_is_unlabelled=False)[1]) == 1
    named = checked(data, tuple("abcdefghijk"))[1][1]
    assert "c, d, e, f, g and 4 more" in named


def test_values_beyond_the_classes_are_told_before_training(tmp_path: Path) -> None:
    numbered = write(tmp_path / "numbered", [stripes(0, 1, 2)])
    refused(
        numbered,
        "value 2, but there are 2 classes, numbered 0 to 1",
        "pass --zero-is-unlabelled",
        zero_is_unlabelled=False,
    )
    grey = write(tmp_path / "grey", [stripes(0, 85, 170, 255)])
    refused(grey, "pass --map-values 85=1,170=2,255=3", classes=("a", "b", "c"))
    instances = write(tmp_path / "instances", [stripes(0, 26001, 26002, 24000, 24001, 7, dtype=np.uint16)])
    refused(instances, "value 26002", "masks of instances")
    signed = write(tmp_path / "signed", [Image.fromarray(stripes(-1, 0, 1, dtype=np.int32), "I")], "tif")
    refused(signed, "-1 (32 pixels in 1 files)", "value")


def test_a_sample_is_counted_and_the_rest_where_a_class_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_check, "SAMPLE", 3)
    data = write(tmp_path, [stripes(1, 2)] * 7)
    assert "(3 of 7 label images counted)" in checked(data)[1][0]
    Image.fromarray(stripes(3, 3)).save(data / "annotations" / "training" / "4.png")
    assert "(all 7 label images counted)" in checked(data, ("a", "b", "c"))[1][0]


def coloured(*colours: str) -> Mask:
    """Return a mask of 8x12 with a stripe of each colour."""
    values = np.array([list(bytes.fromhex(colour)) for colour in colours], np.uint8)
    return np.repeat(values[None], 12 // len(colours), axis=1).repeat(8, 0)


def test_masks_of_colours_are_read_by_their_table(tmp_path: Path) -> None:
    data = write(tmp_path, [coloured("000000", "fa3253")] * 2)
    refused(data, "channels RGB", "#000000 (96 pixels in 2 files)", "--map-values '#000000=1,#fa3253=2'")
    keys: dict[str, Any] = {"map_values": ["#000000=0", "#FA3253=1"], "zero_is_unlabelled": False}
    pairs, _ = checked(data, **keys)
    recipe = settings(data, **keys)
    assert Coding(recipe).read(pairs.labels[0])[0].tolist() == [0] * 6 + [1] * 6
    assert palette(pairs, recipe) == [(0, 0, 0), (250, 50, 83)]
    write(data, [coloured("000000", "fa3253", "fa3254")])
    refused(data, "colour #fa3254, which is not in map_values", "map_values is", **keys)
    blended = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    refused(write(tmp_path / "photo", [blended]), "96 colours for 2 classes")
    refused(write(tmp_path / "numbers", [stripes(0, 1).astype(np.uint16)]), "has no colours", **keys)


def test_palettes_are_read_by_value_or_by_colour(tmp_path: Path) -> None:
    def painted(*colours: int) -> Image.Image:
        image = Image.fromarray(stripes(0, 1, 2), "P")
        image.putpalette([channel for colour in colours for channel in colour.to_bytes(3, "big")])
        return image

    data = write(tmp_path / "same", [painted(0, 0x800000, 0x008000)] * 2)
    pairs, said = checked(data)
    assert len(said) == 1
    assert palette(pairs, settings(data)) == [(128, 0, 0), (0, 128, 0)]
    other = write(tmp_path / "other", [painted(0, 0x800000, 0x008000), painted(0, 0x008000, 0x800000)])
    refused(other, "value 1 is #800000 in the palette of", "--map-values '#800000=1,...'")
    keys: dict[str, Any] = {"map_values": ["#000000=0", "#800000=1", "#008000=2"]}
    coding = Coding(settings(other, **keys))
    pairs, _ = checked(other, **keys)
    first, second = (coding.read(label)[0].tolist() for label in pairs.labels)
    assert first == [255] * 4 + [0] * 4 + [1] * 4
    assert second == [255] * 4 + [1] * 4 + [0] * 4
    checked(other, map_values=["1=1", "2=2"])
    refused(other, "value 2 is", map_values=["1=1"])


READ: dict[str, Callable[[Mask], Image.Image]] = {
    "1-bit": lambda mask: Image.fromarray(mask * 255).convert("1"),
    "16-bit": lambda mask: Image.fromarray(mask.astype(np.uint16)),
    "32-bit": lambda mask: Image.fromarray(mask.astype(np.int32), "I"),
    "float": lambda mask: Image.fromarray(mask.astype(np.float32)),
    "grey as RGB": lambda mask: Image.fromarray(mask).convert("RGB"),
    "grey with alpha": lambda mask: Image.fromarray(mask).convert("LA"),
    "RGB with alpha": lambda mask: Image.fromarray(mask).convert("RGBA"),
}


@pytest.mark.parametrize("kind", READ)
def test_pixel_types_that_hold_the_same_numbers(tmp_path: Path, kind: str) -> None:
    data = write(tmp_path, [READ[kind](stripes(0, 1))], "tif" if kind in ("float", "32-bit") else "png")
    keys: dict[str, Any] = {"zero_is_unlabelled": False}
    pairs, _ = checked(data, **keys)
    assert Coding(settings(data, **keys)).read(pairs.labels[0])[0].tolist() == [0] * 6 + [1] * 6


def test_what_cannot_be_a_label_image_says_why(tmp_path: Path) -> None:
    write(tmp_path / "jpeg", [stripes(0, 255)], "jpg")
    refused(tmp_path / "jpeg", "0.jpg is a JPEG file, whose compression blends the values", "PNG")
    faded = Image.fromarray(stripes(0, 1)).convert("LA")
    faded.putalpha(Image.fromarray(stripes(0, 255)))
    refused(write(tmp_path / "alpha", [faded]), "alpha channel that differs from pixel to pixel")
    fractions = Image.fromarray(stripes(0, 1).astype(np.float32) / 2)
    refused(write(tmp_path / "float", [fractions], "tif"), "holds fractions such as 0.5")
    refused(write(tmp_path / "ink", [Image.new("CMYK", (12, 8))], "tif"), "channels CMYK")
    pages = write(tmp_path / "pages", [stripes(1, 2)], "tif") / "annotations" / "training" / "0.tif"
    page = Image.fromarray(stripes(1, 2))
    page.save(pages, save_all=True, append_images=[page])
    refused(tmp_path / "pages", "has 2 pages")
    small = write(tmp_path / "small", [stripes(1, 2)])
    Image.new("L", (6, 4)).save(small / "annotations" / "training" / "0.png")
    refused(small, "is 6x4 pixels, but", "is 12x8", "nearest neighbour")


def test_corrupt_label_images_do_not_hide_the_others(tmp_path: Path) -> None:
    data = write(tmp_path, [stripes(1, 2)] * 3)
    (data / "annotations" / "training" / "1.png").write_bytes(b"")
    assert "(2 of 3 label images counted)" in checked(data)[1][0]
    for label in (data / "annotations" / "training").iterdir():
        label.write_bytes(b"")
    refused(data, "no label image of training can be read")


def test_partners_are_found_by_suffix_and_list(tmp_path: Path) -> None:
    data = write(tmp_path, [stripes(1, 2)] * 3)
    for label in list((data / "annotations" / "training").iterdir()):
        label.rename(label.with_name(f"{label.stem}_mask.png"))
    refused(data, "has no partner in", "nor have 2 more", "pass --label-suffix _mask")
    assert len(checked(data, label_suffix="_mask")[0]) == 3
    refused(data, "both image_folder and label_folder", image_folder="annotations/{split}")
    (data / "training.txt").write_text("2\n0\r\n\n")
    pairs, _ = checked(data, label_suffix="_mask", split_list="{split}.txt")
    assert [path.name for path in pairs.labels] == ["2_mask.png", "0_mask.png"]
    (data / "training.txt").write_text("2.jpg\n")
    refused(data, "names '2.jpg', which is not in", "without ending", label_suffix="_mask", split_list="{split}.txt")
    refused(data, "split_list:", "cannot be read", label_suffix="_mask", split_list="lists/{split}.txt")
    Image.new("RGB", (12, 8)).save(data / "images" / "training" / "0.png")
    refused(data, "0.jpg and 0.png differ in their ending only", label_suffix="_mask")


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ("255", ["'255' is not VALUE=NUMBER"]),
        ("255=object", ["'255=object' is not VALUE=NUMBER"]),
        ("#ff00=1", ["'#ff00=1' is not VALUE=NUMBER"]),
        ("255=3", ["255=3, but classes are numbered 1 to 2"]),
        ("255=1,255=2", ["give each value once"]),
        ("255=1,#ff0000=2", ["values or colours, not both"]),
        ("70000=1", ["at most 65535"]),
    ],
)
def test_mappings_that_do_not_fit_are_refused(tmp_path: Path, entries: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        settings(tmp_path, map_values=entries.split(","))
    assert "map_values" in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_mapping_may_be_written_as_one(tmp_path: Path) -> None:
    recipe = settings(tmp_path, map_values={0: 255, 255: 1})
    assert recipe.mapping == {0: 255, 255: 1}
    assert settings(tmp_path, map_values=recipe.model_dump(mode="json")["map_values"]) == recipe


def test_a_run_keeps_its_mapping_and_says_over_how_many_classes_its_mean_is(cli: Cli, tmp_path: Path) -> None:
    masks: list[Mask | Image.Image] = [np.kron(stripes(0, 255), np.ones((4, 4), np.uint8))] * 4
    write(tmp_path, masks)
    for kind in ("images", "annotations"):
        shutil.copytree(tmp_path / kind / "training", tmp_path / kind / "validation")
    command = ("transfer", "segmentation", "--output", tmp_path / "run")
    flags = (
        *("--data", tmp_path, "--backbone", "resnet18", "--no-backbone-pretrained", "--classes", "rest,object,other"),
        *("--backbone-args", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}", "--decoder-channels", "16"),
        *("--short-side", "32", "--crop", "32", "--steps", "1", "--batch", "2", "--workers", "0", "--pictures", "1"),
    )
    cli(*command, *flags, "--no-zero-is-unlabelled").refused("only 'rest' occurs", "0 (", "255 (")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    outcome = cli(*command, *flags, "--no-zero-is-unlabelled", "--map-values", "255=1")
    assert outcome.code == 0, outcome.err
    assert "warning: no pixel of training is labelled other" in outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["miou_classes"] == sum(value is not None for value in result["iou"].values())
    measured = cli(*command, "--evaluate", "--json")
    assert json.loads(measured.out)["iou"] == result["iou"]
    panels = torch.from_numpy(np.asarray(Image.open(tmp_path / "run" / "pictures" / "000.png")).astype(int))
    truth = panels[:, 48:96]
    assert not torch.equal(truth[0, 0], truth[0, -1])  # background and object have different colours
