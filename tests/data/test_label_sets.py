"""Lists whose images have several labels, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, write_images

from scalekd.data import join, read_split, read_splits, read_unlabelled
from scalekd.data.augmentation import evaluation_transform
from scalekd.data.hold_out import hold_out
from scalekd.data.loader import Key, ReplayDataset, collate
from scalekd.errors import UserError
from scalekd.recipes import SourceKeys

MULTI = SourceKeys(multi_label=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images: red/0.png to 3, green/..., blue/...."""
    return write_images(tmp_path / "images", 4)


def write(folder: Path, name: str, *lines: str) -> Path:
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return file


def targets(folder: Path, split: str = "train", keys: SourceKeys = MULTI) -> tuple[tuple[str, ...], list[list[float]]]:
    found = read_split(folder, split, keys)
    return found.classes, [np.asarray(found.target(index)).tolist() for index in range(len(found))]


@pytest.mark.parametrize(
    "lines",
    [
        ("path,label", "red/0.png,warm|red", "red/1.png,red", "blue/0.png,"),
        ("filename,red,warm", "red/0.png,1,1", "red/1.png,1,0", "blue/0.png,0,0"),
        ("filename,red,warm", "red/0.png,True,1.0", "red/1.png,true,", "blue/0.png,False,0"),
    ],
)
def test_the_ways_to_write_labels(folder: Path, lines: tuple[str, ...]) -> None:
    write(folder, "train.csv", *lines)
    assert targets(folder) == (("red", "warm"), [[1, 1], [1, 0], [0, 0]])


def test_json_lines_have_lists(folder: Path) -> None:
    write(
        folder, "train.jsonl",
        '{"path": "red/0.png", "labels": ["warm", "red"]}', '{"path": "red/1.png", "labels": "red"}',
        '{"path": "blue/0.png", "labels": []}', '{"path": "blue/1.png", "labels": null}',
    )  # fmt: skip
    assert targets(folder) == (("red", "warm"), [[1, 1], [1, 0], [0, 0], [0, 0]])


def test_a_separator_that_is_named(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,warm red", "blue/0.png,cold|wet")
    keys = SourceKeys(multi_label=True, label_separator="space")
    assert targets(folder, keys=keys)[0] == ("cold|wet", "red", "warm")


def test_the_validation_images_may_lack_a_class(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,c", "red/2.png,b")
    write(folder, "val.csv", "path,label", "blue/0.png,c|b", "blue/1.png,")
    train, val = read_splits(folder, "train", "val", MULTI)
    assert train.classes == val.classes == ("a", "b", "c")
    assert [np.asarray(val.target(index)).tolist() for index in (0, 1)] == [[0, 1, 1], [0, 0, 0]]
    assert train.class_counts.tolist() == [1, 2, 1]


def test_a_class_of_the_validation_images_alone_is_refused(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,b")
    write(folder, "val.csv", "path,label", "blue/0.png,a|new")
    with pytest.raises(UserError, match="new in val only"):
        read_splits(folder, "train", "val", MULTI)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("path,red,score", "red/0.png,1,0.7"), "score is '0.7', neither 0 nor 1"),
        (("path", "red/0.png"), "has no label: there is no column of labels among path"),
        (("path,label", "red/0.png,"), "no classes; at least two"),
        (("path,label", "red/0.png,a"), "one class, 'a'"),
    ],
)
def test_what_is_no_label_is_refused(folder: Path, lines: tuple[str, ...], reason: str) -> None:
    write(folder, "train.csv", *lines)
    write(folder, "val.csv", *lines)
    with pytest.raises(UserError, match=reason):
        read_splits(folder, "train", "val", MULTI)


def test_only_lists_have_several_labels(data: Path) -> None:
    with pytest.raises(UserError, match="several labels per image are read from lists only"):
        read_splits(data, "train", "val", MULTI)


def test_a_batch_has_a_row_for_each_image_and_unknown_rows(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,b")
    write(folder, "unlabelled.csv", "path", "blue/0.png")
    split = join(read_split(folder, "train", MULTI), read_unlabelled(folder, "unlabelled", MULTI))
    dataset = ReplayDataset(split, evaluation_transform(32, 1.0))
    batch = collate([dataset[Key(0, index)] for index in range(3)])
    assert batch.labels.tolist() == [[1, 1], [0, 1], [-1, -1]]
    assert split.unlabelled == 1


def test_the_fingerprint_follows_the_classes_and_not_their_numbering(folder: Path) -> None:
    def fingerprint(*labels: str) -> str:
        write(folder, "train.csv", "path,label", *(f"red/{i}.png,{label}" for i, label in enumerate(labels)))
        return read_split(folder, "train", MULTI).fingerprint

    assert fingerprint("a|b", "b") == fingerprint("b|a", "b")
    assert fingerprint("a|b", "b") != fingerprint("b", "a|b")


def test_a_part_is_held_out_by_the_rarest_class(folder: Path) -> None:
    rows = [
        f"{kind}/{i}.png,{label}" for kind, label in (("red", "a"), ("green", "a|rare"), ("blue", "")) for i in range(4)
    ]
    write(folder, "train.csv", "path,label", *rows)
    keys = SourceKeys(multi_label=True, val_share=0.25)
    train, val = read_splits(folder, "train", "val", keys)
    assert (len(train), len(val)) == (9, 3)
    assert val.class_counts.tolist() == [2, 1]
    kept, measured = hold_out(train, 6, 3, seed=0)
    assert (len(kept), len(measured)) == (6, 3)


def test_a_share_that_holds_out_nothing_is_refused(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,b")
    with pytest.raises(UserError, match=r"val_share: 0.1 of each class .* less than one image"):
        read_splits(folder, "train", "val", SourceKeys(multi_label=True, val_share=0.1))


def test_data_check_counts_each_class(folder: Path, cli: Cli) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,b")
    write(folder, "val.csv", "path,label", "blue/0.png,b", "blue/1.png,b|a")
    checked = cli("data", "check", folder, "--multi-label", "--workers", "0")
    assert checked.code == 0, checked.err


@pytest.mark.parametrize("label", ["red, dark", "red;dark"])
def test_another_separator_is_never_guessed(folder: Path, label: str) -> None:
    write(folder, "train.csv", "path,label", f'red/0.png,"{label}"', "red/1.png,red")
    with pytest.raises(UserError, match=r"may be several labels; name what separates them"):
        targets(folder)
    assert targets(folder, keys=SourceKeys(multi_label=True, label_separator="|"))[0] == ("red", label)


def test_an_image_has_one_row(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a", "red/0.png,b")
    with pytest.raises(UserError, match=r"line 3 names 'red/0.png' again; put all labels"):
        targets(folder)


def test_a_class_whose_name_is_usual_for_labels_is_not_taken_for_them(folder: Path) -> None:
    write(folder, "train.csv", "path,cat,tag", "red/0.png,1,0", "red/1.png,0,1")
    with pytest.raises(UserError, match=r"'tag' holds nothing but 0 and 1"):
        targets(folder)


def test_a_column_without_an_image_is_a_class(folder: Path) -> None:
    write(folder, "train.csv", "path,cat,dog", "red/0.png,1,0", "red/1.png,1,0")
    assert targets(folder) == (("cat", "dog"), [[1, 0], [1, 0]])


def test_a_json_row_without_labels_has_none_that_are_known(folder: Path) -> None:
    write(folder, "train.jsonl", '{"path": "red/0.png", "label": ["a"]}', '{"path": "red/1.png", "difficult": 0}')
    with pytest.raises(UserError, match="line 2 has no label"):
        targets(folder)


def test_validation_images_of_a_single_class_and_a_folder_without_labels(folder: Path) -> None:
    write(folder, "train.csv", "path,label", "red/0.png,a|b", "red/1.png,b")
    write(folder, "val.csv", "path,label", "blue/0.png,b")
    train, val = read_splits(folder, "train", "val", MULTI)
    assert val.classes == train.classes
    write_images(folder / "unlabelled", 1)
    assert len(read_unlabelled(folder, "unlabelled", MULTI)) == 3


def test_lists_with_one_label_may_have_any_other_columns(folder: Path) -> None:
    write(folder, "train.csv", "path,label,fold,dataset", "red/0.png,a,1,x", "red/1.png,b,2,y")
    assert read_split(folder, "train", SourceKeys()).classes == ("a", "b")
    assert read_split(folder, "train", SourceKeys(split_column="part")).classes == ("a", "b")
