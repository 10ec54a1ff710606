"""Data that is temporarily unavailable: wait, then stop cleanly; never counted as corrupt images."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli

from scalekd.data import Key, ReplayDataset, evaluation_transform, read_split
from scalekd.data.outages import DataGoneError

BACK = 0.5  # seconds


def images(data: Path, patience: float) -> ReplayDataset:
    return ReplayDataset(read_split(data, "train"), evaluation_transform(24), patience=patience)


def later(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(BACK, act)
    thread.start()
    return thread


def unmount(root: Path) -> Callable[[], object]:
    """Leave an empty folder, as of a disk that is not mounted; returns a function that brings the images back."""
    root.rename(root.with_name("away"))
    root.mkdir()
    return lambda: root.with_name("away").rename(root)  # rename replaces an empty folder


def move(root: Path) -> Callable[[], object]:
    root.rename(root.with_name("away"))
    return lambda: root.with_name("away").rename(root)


def lose_class(root: Path) -> Callable[[], object]:
    return move(root / "blue")


@pytest.mark.parametrize("lose", [unmount, move, lose_class])
def test_a_place_that_comes_back_is_waited_for(
    data: Path, capfd: pytest.CaptureFixture[str], lose: Callable[[Path], Callable[[], object]]
) -> None:
    dataset = images(data, 30)
    thread = later(lose(data / "train"))
    sample = dataset[Key(0, 0)]
    thread.join()
    assert sample.image is not None
    assert not sample.corrupt
    gone, back = capfd.readouterr().err.splitlines()
    assert f"{data / 'train'} is unavailable" in gone
    assert back == f"data      {data / 'train'} is available again"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_disk_that_fails_is_no_broken_image(data: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    dataset, until = images(data, 30), time.monotonic() + BACK
    honest = dataset.split.store.locate

    def locate(_store: object, index: int) -> str:
        if time.monotonic() < until:
            raise OSError(number, os.strerror(number), honest(index))
        return honest(index)

    monkeypatch.setattr(type(dataset.split.store), "open", locate)
    assert dataset[Key(0, 0)].image is not None
    until = float("inf")
    dataset.patience.seconds = 0
    with pytest.raises(DataGoneError, match=f"is unavailable: .*0.png: {os.strerror(number)}; waited 0 s"):
        dataset[Key(0, 0)]


def test_a_file_alone_is_not_waited_for(data: Path) -> None:
    dataset = images(data, 600)
    (data / "train" / "blue" / "0.png").unlink()
    (data / "train" / "blue" / "1.png").write_bytes(b"no image")
    started = time.monotonic()
    assert all(dataset[Key(0, index)].image is None for index in range(2))
    assert time.monotonic() - started < 60


def distill(cli: Cli, data: Path, output: Path, *more: str) -> Path:
    base = ("--method", "none", "--data", data, "--output", output, *TINY_RUN, "--epochs", "16")
    outcome = cli("distill", *base, "--validate-every", "8", "--max-corrupt", "0", *more)
    (output / "err").write_text(outcome.err)
    if "--data-patience" in more and more[-1] == "0.5":
        outcome.refused("data: ", "is unavailable", "waited 0.5 s", "data_patience", "--resume")
    else:
        assert outcome.code == 0, outcome.err
    return output


def when_training(output: Path, act: Callable[[], object]) -> threading.Thread:
    def watch() -> None:
        while not (output / "metrics.jsonl").is_file():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_run_goes_on_when_its_data_is_back(cli: Cli, data: Path, tmp_path: Path) -> None:
    def lose_for_a_while() -> None:
        bring_back = move(data)
        time.sleep(1.5)
        bring_back()

    quiet = distill(cli, data, tmp_path / "quiet", "--workers", "0")
    thread = when_training(tmp_path / "run", lose_for_a_while)
    disturbed = distill(cli, data, tmp_path / "run", "--workers", "2", "--data-patience", "60")
    thread.join()
    assert (quiet / "student.safetensors").read_bytes() == (disturbed / "student.safetensors").read_bytes()
    told = [
        line
        for line in (disturbed / "err").read_text().splitlines()
        if "is unavailable" in line or "is available again" in line
    ]
    assert ["is unavailable" in line for line in told] == [True, False]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_whose_data_stays_away_stops_in_a_line(cli: Cli, data: Path, tmp_path: Path, workers: str) -> None:
    thread = when_training(tmp_path / "run", lambda: shutil.rmtree(data))
    distill(cli, data, tmp_path / "run", "--workers", workers, "--data-patience", "0.5")
    thread.join()
    assert "cannot be read" not in (tmp_path / "run" / "err").read_text()


def test_the_name_of_a_place_does_nothing_to_a_terminal(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = data.rename(tmp_path / "\x1b[31m")
    dataset = images(data, 0.1)
    move(data / "train")
    with pytest.raises(DataGoneError):
        dataset[Key(0, 0)]
    told = capfd.readouterr().err
    assert "\\x1b[31m" in told
    assert "\x1b" not in told
