from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli, write_images

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
    with pytest.raises(UserError, match="no images in"):
        read_label_free(data, "train", "val", "unlabelled")
    with pytest.raises(UserError, match="no such folder"):
        read_label_free(data / "absent", "train", "val", "unlabelled")
    write_images(data / "val", 2, seed=5)
    with pytest.raises(UserError, match="has no folder 'train'"):
        read_label_free(data, "train", "val", "unlabelled")
    (data / "train").mkdir()
    with pytest.raises(UserError, match="no images in"):
        read_label_free(data, "train", "val", "unlabelled")


def test_any_folder_of_images_will_do(cli: Cli, teacher_file: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_images(photos / "holiday", 4)
    for path in sorted(photos.glob("*/red/*")):
        shutil.copy(path, photos / path.name)
    flags = ("--recipe", "label-free", "--teacher", teacher_file, "--teacher-resolution", "32", "--data", photos)
    inside = cli("distill", *flags, *TINY_RUN, "--output", photos / "run")
    inside.refused("output")
    outcome = cli("distill", *flags, *TINY_RUN, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "16 training images (16 without label) and 0 validation images" in outcome.err
    adapted = cli(
        *("adapt", tmp_path / "run" / "student.safetensors", "--data", photos / "holiday", "--val-share", "0.25"),
        *("--workers", "0", "--output", tmp_path / "head"),
    )
    assert adapted.code == 0, adapted.err
