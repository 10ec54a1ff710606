"""`scalekd data check`."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import Cli, write_images
from PIL import Image

from scalekd.data import Files, Split, read_split
from scalekd.data.check import check_split


def test_whole_data_is_counted_and_ends_with_0(cli: Cli, data: Path) -> None:
    outcome = cli("data", "check", data, "--workers", "1", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    train = report["splits"]["train"]
    assert (train["images"], train["classes"]) == (12, {"blue": 4, "green": 4, "red": 4})
    assert train["width"] == {"min": 36, "median": 36, "max": 36}
    assert train["height"] == {"min": 40, "median": 40, "max": 40}
    assert train["modes"] == {"RGB": 12}
    assert (train["corrupt"], train["duplicates"], report["leaks"]) == ([], [], [])
    assert report["images_per_second"] > 0


@pytest.fixture
def spoilt(data: Path) -> Path:
    """Data with corrupt, equal and leaked files, another pixel mode, and a name with terminal control characters."""
    train = data / "train"
    (train / "red" / "0.png").write_bytes((train / "red" / "0.png").read_bytes()[:300])
    (train / "red" / "1.png").write_bytes(b"")
    (train / "red" / "2.png").unlink()
    shutil.copy(train / "blue" / "0.png", train / "green" / "[bold]\x1b[31m.png")
    shutil.copy(train / "blue" / "1.png", data / "val" / "blue" / "leaked.png")
    Image.new("L", (9, 70)).save(train / "red" / "2.png")
    write_images(data / "unlabelled", 1, seed=9)
    return data


def test_what_is_wrong_is_listed_and_ends_with_1(cli: Cli, spoilt: Path) -> None:
    outcome = cli("data", "check", spoilt, "--workers", "0", "--json")
    assert outcome.code == 1, outcome.err
    report = json.loads(outcome.out)
    train = report["splits"]["train"]
    assert train["corrupt"] == [str(spoilt / "train" / "red" / f"{n}.png") for n in (0, 1)]
    assert train["duplicates"] == [[str(spoilt / "train" / p) for p in ("blue/0.png", "green/[bold]\x1b[31m.png")]]
    assert report["leaks"] == [[str(spoilt / "train/blue/1.png"), str(spoilt / "val/blue/leaked.png")]]
    assert train["modes"] == {"RGB": 10, "L": 1}
    assert (train["width"]["min"], train["height"]["max"]) == (9, 70)
    assert report["splits"]["unlabelled"]["images"] == 3
    free = json.loads(cli("data", "check", spoilt, "--workers", "0", "--labels", "none", "--json").out)
    assert (free["splits"]["train"]["images"], free["splits"]["train"]["classes"]) == (16, {})


def test_empty_and_single_classes_are_told_however_the_labels_are_used(cli: Cli, data: Path) -> None:
    """A run refuses each of them; the check reads the rest of the data anyway."""
    (data / "val" / "violet").mkdir()
    for labels in ("folders", "none"):
        outcome = cli("data", "check", data, "--workers", "0", "--labels", labels)
        assert outcome.code == 1, outcome.err
        assert "empty     val: no images in violet; a run refuses that" in outcome.out
    for name in ("violet", "red", "green"):
        shutil.rmtree(data / "val" / name)
    outcome = cli("data", "check", data, "--workers", "0", "--labels", "none")
    assert outcome.code == 1, outcome.err
    assert "blue alone in val, where at least two classes are needed; a run refuses that" in outcome.out


def test_the_table_shows_names_as_they_are(cli: Cli, spoilt: Path) -> None:
    outcome = cli("data", "check", spoilt, "--workers", "0")
    assert outcome.code == 1, outcome.err
    assert "green/[bold]\\x1b[31m.png" in outcome.out
    assert "\x1b" not in outcome.out
    for part in ("blue", "min / median / max", "corrupt", "equal", "leak", "images per second"):
        assert part in outcome.out


def test_a_wrong_input_ends_with_2(cli: Cli, data: Path, tmp_path: Path) -> None:
    cli("data", "check", tmp_path / "nowhere").refused("no such folder")
    cli("data", "check", data, "--val-split", "vla").refused("did you mean 'val'")
    cli("data", "check").refused("DATA")
    assert "Exit code" in cli("data", "check", "--help").out
    shutil.rmtree(data / "train")
    assert cli("data", "check", data, "--workers", "0").code == 0, "validation images alone, as for evaluate"


def test_what_is_no_image_file_is_corrupt(cli: Cli, data: Path) -> None:
    os.mkfifo(data / "train" / "red" / "pipe.png")
    os.symlink("/dev/zero", data / "train" / "red" / "zero.png")
    outcome = cli("data", "check", data, "--workers", "0", "--json")
    corrupt = json.loads(outcome.out)["splits"]["train"]["corrupt"]
    assert [Path(path).name for path in corrupt] == ["pipe.png", "zero.png"]
    outcome = cli("data", "check", data, "--workers", "0", "--max-pixels", "100", "--json")
    assert len(json.loads(outcome.out)["splits"]["val"]["corrupt"]) == 6


def test_a_leak_from_unlabelled_images_is_found(cli: Cli, data: Path) -> None:
    (data / "unlabelled").mkdir()
    shutil.copy(data / "val" / "red" / "0.png", data / "unlabelled" / "x.png")
    outcome = cli("data", "check", data, "--workers", "0", "--json")
    assert outcome.code == 1, outcome.err
    assert json.loads(outcome.out)["leaks"] == [[str(data / "unlabelled/x.png"), str(data / "val/red/0.png")]]


class Deadly(Files):
    """Files that kill the first worker process that reads them."""

    def open(self, index: int) -> str:
        if torch.utils.data.get_worker_info() is not None and not (self.root / "died").exists():
            (self.root / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(index)


@pytest.mark.slow  # torch checks its processes every five seconds
def test_a_killed_process_is_replaced(data: Path) -> None:
    split = read_split(data, "train")
    split = Split(Deadly(split.root, split.store.names), split.labels, split.classes)
    told: list[str] = []
    found = check_split(split, 1, lambda _count: None, told.append)
    assert len(found.sizes) == 12
    assert [line for line in told if "was killed" in line] == told != []


@pytest.mark.parametrize("kind", ["list", "tar"])
def test_lists_and_shards_are_checked(cli: Cli, data: Path, kind: str) -> None:
    paths = sorted(data.glob("*/*/*.png"))
    if kind == "list":
        rows = [f"{p.relative_to(data)},{p.parent.name},{p.parents[1].name}\n" for p in paths]
        (data / "list.csv").write_text("path,label,split\n" + "".join(rows))
        place = data / "list.csv"
    else:
        place = data.parent / "shards"
        place.mkdir()
        for split in ("train", "val"):
            with tarfile.open(place / f"{split}-0.tar", "w") as tar:
                for path in (data / split).glob("*/*.png"):
                    tar.add(path, f"{path.parent.name}/{path.name}")
                    label = tarfile.TarInfo(f"{path.parent.name}/{path.stem}.cls")
                    label.size = len(path.parent.name)
                    tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    outcome = cli("data", "check", place, "--workers", "0", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["splits"]["val"]["classes"] == {"blue": 2, "green": 2, "red": 2}
