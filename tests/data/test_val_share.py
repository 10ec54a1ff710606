"""`val_share` holds out a part of each class, the same in every command, with equal files on one side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RUN, Cli, write_images

from scalekd.data import Split
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.tasks.distill.inputs import check_output, read_data


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """A folder of three classes with 10 images each."""
    return write_images(tmp_path / "data", 10)


def read(data: Path, **keys: Any) -> tuple[Split, Split]:
    return read_data(load(None, {"data": str(data), "val_share": 0.2, **keys}))


def files(split: Split) -> set[str]:
    return {split.locate(index) for index in range(len(split))}


def test_a_folder_of_classes_is_divided(unsplit: Path) -> None:
    train, val = read(unsplit)
    assert train.classes == val.classes == ("blue", "green", "red")
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    assert files(train) | files(val) == {str(path) for path in unsplit.glob("*/*.png")}
    assert not files(train) & files(val)
    for index in (0, 5):
        with train.open(index) as image:
            assert image.size == (36, 40)
    assert [files(split) for split in read(unsplit, seed=7)] == [files(train), files(val)], "whatever the seed"


def test_a_training_split_is_divided_and_images_without_label_stay(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 10)
    write_images(tmp_path / "unlabelled", 2)
    train, val = read(tmp_path)
    assert (len(train), train.unlabelled, len(val)) == (24 + 6, 6, 6)
    free = read(tmp_path, labels="none", logit_weight=0.0)
    assert (len(free[0]), free[0].unlabelled, free[0].classes) == (30, 30, ())
    assert files(free[1]) == files(val)


def test_more_images_move_few_others(unsplit: Path) -> None:
    before = files(read(unsplit)[1])
    shutil.copytree(
        write_images(unsplit.parent / "more", 2, seed=1), unsplit, dirs_exist_ok=True, copy_function=_renamed
    )
    after = files(read(unsplit)[1])
    assert len(after) == 6
    assert len(before & after) >= 3


def _renamed(source: str, target: str) -> str:
    return str(shutil.copy(source, str(target).replace(".png", "-more.png")))


def test_equal_files_are_on_one_side(unsplit: Path) -> None:
    for path in sorted(unsplit.glob("*/*.png")):
        shutil.copy(path, path.with_stem(f"{path.stem}-copy"))
        shutil.copy(path, path.with_stem(f"z-{path.stem}"))
    train, val = read(unsplit)
    stems = [
        {Path(file).stem.removesuffix("-copy").removeprefix("z-") + Path(file).parent.name for file in files(split)}
        for split in (train, val)
    ]
    assert not stems[0] & stems[1]
    assert np.bincount(val.labels).tolist() == [6, 6, 6]


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [("all.csv", "path,label\n", "{},{}\n"), ("all.jsonl", "", '{{"path": "{}", "label": "{}"}}\n')],
)
def test_a_list_without_splits_is_divided(unsplit: Path, tmp_path: Path, name: str, header: str, row: str) -> None:
    file = tmp_path / name
    file.write_text(header + "".join(row.format(path, path.parent.name) for path in sorted(unsplit.glob("*/*.png"))))
    train, val = read(file)
    assert (len(train), len(val)) == (24, 6)
    with pytest.raises(UserError, match="hold out a part of all rows with val_share"):
        read(file, val_share=None)


def test_every_command_sees_the_same_images(cli: Cli, unsplit: Path, teacher_file: Path, tmp_path: Path) -> None:
    flags = ("--data", unsplit, "--val-share", "0.2")
    run = tmp_path / "run"
    trained = cli("distill", "--teacher", teacher_file, "--no-check-teacher", *flags, *TINY_RUN, "--output", run)
    assert trained.code == 0, trained.err
    assert "24 training images and 6 validation images" in trained.err
    result = json.loads((run / "result.json").read_text())
    measured = json.loads(cli("evaluate", run, "--json").out)
    assert (measured["images"], measured["top1"]) == (6, pytest.approx(result["top1"], abs=1e-3))
    other = tmp_path / "other"
    write_images(other / "val", 3, seed=2)
    elsewhere = json.loads(cli("evaluate", run, "--data", other, "--json").out)
    assert elsewhere["images"] == 9, "the share is of the run's own data"
    cli("evaluate", run, "--val-split", "tets").refused("no folder 'tets'")
    checked = cli("data", "check", unsplit, "--val-share", "0.2")
    assert checked.code == 0, checked.out + checked.err
    (run / "result.json").unlink()
    cli("distill", "--resume", "--output", run, "--val-share", "0.3").refused("val_share is 0.3", "started with 0.2")
    adapted = cli("adapt", teacher_file, *flags, "--resolution", "32", "--workers", "0", "--output", tmp_path / "t")
    assert adapted.code == 0, adapted.err


@pytest.mark.parametrize("share", ["0", "0.6", "-0.1", "x"])
def test_a_share_is_above_0_and_at_most_a_half(cli: Cli, unsplit: Path, tmp_path: Path, share: str) -> None:
    cli("distill", "--data", unsplit, "--val-share", share, "--output", tmp_path / "run").refused("val")


def test_links_to_held_out_images_are_refused(unsplit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(unsplit, unsplit.parent / "own" / "train")
    own = unsplit.parent / "own"
    held = sorted(files(read(own)[1]))
    (own / "unlabelled").mkdir()
    (own / "unlabelled" / "a.png").symlink_to(held[0])
    monkeypatch.chdir(own.parent)
    with pytest.raises(UserError, match="1 of 6 images of the validation split"):
        read(Path("own"))


def test_copies_in_two_classes_leave_both_with_images_on_both_sides(unsplit: Path) -> None:
    for path in sorted((unsplit / "red").iterdir()):
        shutil.copy(path, unsplit / "blue" / f"red-{path.name}")
    train, val = read(unsplit)
    assert not {Path(file).name.removeprefix("red-") for file in files(train) if "red" in file} & {
        Path(file).name.removeprefix("red-") for file in files(val) if "red" in file
    }
    assert set(train.labels) == set(val.labels) == {0, 1, 2}


def test_what_cannot_be_divided_is_refused(unsplit: Path, tmp_path: Path) -> None:
    shutil.copytree(unsplit, tmp_path / "split" / "train")
    shutil.copytree(unsplit, tmp_path / "split" / "val")
    with pytest.raises(UserError, match=r"val_share: there is a split 'val' already; leave val_share out"):
        read(tmp_path / "split")
    shutil.copytree(unsplit, tmp_path / "beside")
    shutil.copytree(unsplit / "red", tmp_path / "beside" / "unlabelled")
    with pytest.raises(UserError, match=r"a folder 'unlabelled' between its classes; move the classes to .*/train"):
        read(tmp_path / "beside")
    shutil.copytree(unsplit / "red", unsplit.parent / "splits" / "Training" / "red")
    shutil.copytree(unsplit / "red", unsplit.parent / "splits" / "Validation" / "red")
    with pytest.raises(UserError, match="a folder 'Training' between its classes"):
        read(unsplit.parent / "splits")
    few = unsplit / "few"
    few.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(unsplit / "red" / "0.png", few / name)
    with pytest.raises(UserError, match=r"class 'few' has 2 image\(s\), too few different ones"):
        read(unsplit)
    with pytest.raises(UserError, match=r"To hold out a tenth of each class .* pass --val-share 0.1"):
        read(unsplit, val_share=None)
    with pytest.raises(UserError, match="output"):
        check_output(load(None, {"data": str(unsplit), "val_share": 0.2}), unsplit / "run")
