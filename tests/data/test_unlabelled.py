from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import write_images

from scalekd.data import join, read_label_free, read_splits, read_unlabelled
from scalekd.errors import UserError


def test_images_are_found_at_any_depth_and_have_no_label(data: Path) -> None:
    split = read_unlabelled(data, "train")
    assert len(split) == split.unlabelled == 12
    assert split.classes == ()
    assert set(split.labels) == {-1}


def test_labelled_and_unlabelled_images_make_one_split(data: Path) -> None:
    write_images(data / "unlabelled", 2, seed=5)
    train, _ = read_splits(data, "train", "val")
    both = join(train, read_unlabelled(data, "unlabelled"))
    assert (len(both), both.unlabelled, both.classes) == (18, 6, train.classes)
    assert both.fingerprint != train.fingerprint
    assert both.root == data


def test_without_labels_either_folder_will_do(data: Path) -> None:
    write_images(data / "unlabelled", 2, seed=5)
    train, val = read_label_free(data, "train", "val", "unlabelled")
    assert (len(train), train.unlabelled, len(val)) == (18, 18, 6)
    shutil.rmtree(data / "train")
    shutil.rmtree(data / "val")
    train, val = read_label_free(data, "train", "val", "unlabelled")
    assert (len(train), len(val), val.classes) == (6, 0, ())
    shutil.rmtree(data / "unlabelled")
    with pytest.raises(UserError, match="has no folder 'train'"):
        read_label_free(data, "train", "val", "unlabelled")
    (data / "train").mkdir()
    with pytest.raises(UserError, match="no images in"):
        read_label_free(data, "train", "val", "unlabelled")
