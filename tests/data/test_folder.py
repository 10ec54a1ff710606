from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scalekd.data import read_split, read_splits
from scalekd.errors import UserError


def test_images_are_listed_by_class_and_other_files_left_out(data: Path) -> None:
    (data / "train" / "red" / "notes.txt").write_text("no image")
    split = read_split(data, "train")
    assert split.classes == ("blue", "green", "red")
    assert split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert split.fingerprint == "12 images, 9d70b22eeac317e6"
    assert all(path.endswith(".png") for path in split.store.names)


def test_a_missing_split_suggests_the_nearest(data: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_split(data, "trian")
    with pytest.raises(UserError, match=r"did you mean its parent, .*data\?"):
        read_split(data / "train", "train")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        read_split(tmp_path / "nowhere", "train")


def test_an_empty_split_a_single_class_and_an_empty_class_are_refused(data: Path) -> None:
    (data / "none").mkdir()
    with pytest.raises(UserError, match="holds no folder"):
        read_split(data, "none")
    (data / "none" / "red").mkdir()
    with pytest.raises(UserError, match=r"no images in .*none"):
        read_split(data, "none")
    shutil.copytree(data / "train" / "red", data / "none" / "red", dirs_exist_ok=True)
    for splits in (("none", "val"), ("train", "none")):
        with pytest.raises(UserError, match="one class, 'red'"):
            read_splits(data, *splits)
    (data / "val" / "violet").mkdir()
    with pytest.raises(UserError, match=r"no images in .*violet"):
        read_splits(data, "train", "val")


def test_one_class_and_an_empty_class_are_enough_to_measure_on(data: Path) -> None:
    shutil.copytree(data / "val" / "red", data / "one" / "red")
    one = read_split(data, "one")
    assert (one.classes, set(one.labels.tolist())) == (("red",), {0})
    (data / "val" / "violet").mkdir()
    assert read_split(data, "val").skipped.empty == ["violet"]


def test_different_classes_in_the_splits_are_named(data: Path) -> None:
    shutil.move(data / "val" / "red", data / "val" / "rot")
    with pytest.raises(UserError, match=r"classes differ: red in train only"):
        read_splits(data, "train", "val")
