"""Splits that share images are refused wherever accuracy is measured on one after training on the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli
from sourcing import write_list, write_parquet, write_shards

from scalekd.data import read_label_free, read_splits, shared_images
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.tasks.distill.inputs import read_data


def _same_folder(data: Path) -> dict[str, str]:
    return {"data": str(data / "train"), "train_split": ".", "val_split": "."}


def _spelt_otherwise(data: Path) -> dict[str, str]:
    return {"data": str(data), "train_split": "train", "val_split": "./train"}


def _linked_split(data: Path) -> dict[str, str]:
    (data / "holdout").symlink_to("train", target_is_directory=True)
    return {"data": str(data), "val_split": "holdout"}


def _linked_class(data: Path) -> dict[str, str]:
    shutil.rmtree(data / "val" / "red")
    (data / "val" / "red").symlink_to(data / "train" / "red", target_is_directory=True)
    return {"data": str(data)}


def _linked_file(data: Path) -> dict[str, str]:
    (data / "val" / "red" / "9.png").symlink_to(data / "train" / "red" / "0.png")
    return {"data": str(data)}


def _linked_from_a_pool(data: Path) -> dict[str, str]:
    shutil.copytree(data, data.parent / "pool")
    for split in ("train", "val"):
        for file in (data / split).glob("*/*"):
            file.unlink()
            file.symlink_to(data.parent / "pool" / "train" / file.parent.name / file.name)
    return {"data": str(data)}


def _list(data: Path) -> dict[str, str]:
    lines = write_list(data, data / "all.csv", "train", "val").read_text().splitlines()
    (data / "all.csv").write_text("\n".join([*lines, f"{lines[1].rsplit(',', 1)[0]},val"]))
    return {"data": str(data / "all.csv")}


def _list_with_dots(data: Path) -> dict[str, str]:
    lines = write_list(data, data / "all.csv", "train", "val").read_text().splitlines()
    (data / "all.csv").write_text("\n".join([*lines, "./train/./red/0.png,red,val"]))
    return {"data": str(data / "all.csv")}


def _same_shards(data: Path) -> dict[str, str]:
    folder = write_shards(data, data.parent / "shards")
    return {"data": f"{folder}/{{split}}-{{00..01}}.tar", "val_split": "train"}


def _linked_shard(data: Path) -> dict[str, str]:
    folder = write_shards(data, data.parent / "shards")
    (folder / "val-00.tar").unlink()
    (folder / "val-00.tar").symlink_to("train-00.tar")
    return {"data": str(folder)}


def _table(data: Path) -> dict[str, str]:
    return {"data": f"hf:{write_parquet(data, data.parent / 'tables')}", "val_split": "train"}


SHARED: list[Callable[[Path], dict[str, str]]] = [
    _same_folder, _spelt_otherwise, _linked_split, _linked_class, _linked_file, _linked_from_a_pool, _list,
    _list_with_dots, _same_shards, _linked_shard, _table,
]  # fmt: skip


@pytest.mark.parametrize("make", SHARED)
def test_shared_images_are_refused(data: Path, make: Callable[[Path], dict[str, str]]) -> None:
    with pytest.raises(UserError, match=r"\d+ of \d+ images of the validation split .* are in the training split"):
        read_data(load(None, dict(make(data)) | {"method": "none"}))


def test_nested_folders_share_what_is_inside(data: Path) -> None:
    keys = {"data": str(data), "labels": "none", "train_split": ".", "method": "fd"}
    with pytest.raises(UserError, match=r"6 of 6 images of the validation split 'val' .* '\.', too"):
        read_data(load(None, keys))
    shutil.copytree(data / "val", data / "unlabelled")
    train, val = read_data(load(None, keys | {"train_split": "train"}))
    assert (len(train), len(val)) == (18, 6), "copies are other images, as far as their paths tell"
    shutil.rmtree(data / "unlabelled")
    (data / "unlabelled").symlink_to("val", target_is_directory=True)
    with pytest.raises(UserError, match="6 of 6 images"):
        read_data(load(None, keys | {"train_split": "train"}))


@pytest.mark.parametrize("source", ["folder", "list", "shards", "table"])
def test_splits_of_their_own_share_nothing(data: Path, tmp_path: Path, source: str) -> None:
    places = {
        "folder": lambda: str(data),
        "list": lambda: str(write_list(data, data / "all.jsonl", "train", "val")),
        "shards": lambda: str(write_shards(data, tmp_path / "shards")),
        "table": lambda: f"hf:{write_parquet(data, tmp_path / 'tables')}",
    }
    train, val = read_splits(places[source](), "train", "val")
    assert shared_images(train, val) == []
    assert shared_images(val, val) == [(index, index) for index in range(len(val))]


def test_without_validation_images_nothing_is_shared(data: Path) -> None:
    shutil.rmtree(data / "val")
    train, val = read_label_free(data, "train", "val", "unlabelled")
    assert shared_images(train, val) == []


def test_every_command_that_measures_after_fitting_refuses(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    same = ("--data", data / "train", "--train-split", ".", "--val-split", ".")
    for command in (
        ("distill", "--method", "none", *TINY_RUN, "--output", tmp_path / "run"),
        ("adapt", teacher_file, "--output", tmp_path / "t"),
        ("adapt", teacher_file, "--output", tmp_path / "t", "--mode", "finetune"),
        ("cache", "--teacher", teacher_file, "--cache", tmp_path / "caches"),
        ("evaluate", teacher_file, "--knn"),
    ):
        cli(*command, *same).refused(
            "12 of 12 images of the validation split '.'", "Move images from the training split"
        )
    assert not {"run", "t", "caches"} & set(os.listdir(tmp_path))
    assert cli("evaluate", teacher_file, "--data", data, "--val-split", "train").code == 0, "measuring it is no leak"


def test_classes_without_splits_are_told_how_to_be_split(cli: Cli, data: Path, tmp_path: Path) -> None:
    classes = (data / "train").rename(tmp_path / "classes")
    outcome = cli("distill", "--method", "none", "--data", classes, "--output", data / "run", *TINY_RUN)
    outcome.refused("no folder 'train'", "blue, green, red", "not split yet", "--val-share 0.1", "CSV")
    assert "val-split" not in outcome.err
    (data / "train").mkdir()
    outcome = cli("distill", "--method", "none", "--data", data, "--train-split", "dev", "--output", data / "run")
    outcome.refused("no folder 'dev'", "one for validation")
