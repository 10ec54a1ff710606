"""Names of classes, files and folders are whatever a file system takes; they must do nothing where they are printed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, Cli, Outcome, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalekd.errors import UserError, printable
from scalekd.models.weights import read_weights

NAMES = (
    *("[bold]x[red]", "\x1b[31mred\x1b[0m\n", "a\nb\tc\r", "\u202egpj.", "\U0001f600", os.fsdecode(b"\xff\xfe"), "-rf"),
    *("x..\\..\\x", "{name}%s", "<b>&amp;", "…", " "),
)
CLASSES = tuple(sorted(NAMES))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that is called like its classes and their files, with two unreadable images."""
    root = write_images(tmp_path / "plain", 1) / "red"
    folder = tmp_path / "".join(NAMES)
    for split in ("train", "val"):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
            shutil.copy(root / "0.png", folder / split / name / f"{name}.png")
    for name in ("a\nb\tc\r", os.fsdecode(b"\xff\xfe")):
        (folder / "train" / name / f"{name}{name}.png").touch()
    return folder


def harmless(outcome: Outcome) -> None:
    """Assert that a command's lines are text alone."""
    for text in (outcome.out, outcome.err):
        assert all(line.isprintable() for line in text.splitlines())
        assert "\x1b" not in text


def test_a_run_on_hostile_names_trains_goes_on_and_is_evaluated(cli: Cli, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "".join(NAMES[:4])
    run = ("distill", "--method", "none", "--data", data, "--output", output, *TINY_RUN)
    outcome = cli(*run)
    assert outcome.code == 0, outcome.err
    harmless(outcome)
    assert outcome.err.count("warning: left out, cannot be read: ") == 2
    assert printable(output) in outcome.out
    _, card = read_weights(output / "student.safetensors")
    assert card is not None
    assert card.classes == CLASSES
    result = json.loads((output / "result.json").read_text())
    assert {Path(path).parent.name for path in result["corrupt_images"]} == {"a\nb\tc\r", os.fsdecode(b"\xff\xfe")}
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4
    assert "train/loss" in EventAccumulator(str(output / "tensorboard")).Reload().Tags()["scalars"]

    (output / "result.json").unlink()
    outcome = cli("evaluate", output)
    assert f"{printable(output)} has not ended" in outcome.err
    harmless(outcome)
    outcome = cli("distill", "--resume", "--output", output)
    assert outcome.code == 0, outcome.err
    harmless(outcome)
    assert json.loads((output / "result.json").read_text())["sha256"] == result["sha256"]

    for more in ((), ("--json",)):
        outcome = cli("evaluate", output, *more)
        assert outcome.code == 0, outcome.err
        harmless(outcome)


def test_hostile_names_in_errors_leave_one_line(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = ("distill", "--method", "none", "--data", data, "--output", tmp_path / "run", *TINY_RUN)
    for more in (
        ("--max-corrupt", "0"),
        ("--train-split", "\x1b\n"),
        ("--batch", "102"),
        ("--data", f"{data}\n\x1b[2J"),
    ):
        outcome = cli(*run, *more)
        outcome.refused()
        harmless(outcome)
    cli(*run, "--output", tmp_path / NAMES[5]).refused("output", r"\udcff\udcfe is not valid UTF-8")
    shutil.rmtree(data / "val" / "a\nb\tc\r")
    outcome = cli(*run, "--overwrite")
    outcome.refused("classes differ", r"a\nb\tc\r")
    harmless(outcome)


def test_a_cache_of_hostile_names_is_filled_and_read(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    teacher = ("--teacher", teacher_file, "--logit-weight", "0", "--cache", tmp_path / "caches\n", "--data", data)
    filled = cli("cache", *teacher, "--augmentation-epochs", "1", *TINY_RUN)
    assert filled.code == 0, filled.err
    harmless(filled)
    assert "14 images x 1 view(s)" in filled.out
    outcome = cli("distill", *teacher, "--augmentation-epochs", "1", "--output", tmp_path / "run", *TINY_RUN)
    assert outcome.code == 0, outcome.err
    harmless(outcome)
    (data / "train" / " " / "new\n.png").touch()
    outcome = cli("distill", *teacher, "--augmentation-epochs", "1", "--output", tmp_path / "two", *TINY_RUN)
    outcome.refused("1 added", r"new\n.png")
    harmless(outcome)


@pytest.mark.parametrize("name", [*NAMES, "\0", "\udc80", "\u2028"])
def test_what_is_printable_is_one_line_and_stays_as_it_is(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown == printable(shown)
    assert str(UserError(name)) == shown
    if name.isprintable():
        assert shown == name


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    line = str(UserError(f"data: {'x' * 10_000} is too long; mend it"))
    assert len(line) < 2100
    assert line.startswith("data: xxx")
    assert line.endswith("; mend it")


def test_a_message_of_torch_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory.\n\x1b[31m"), MemoryError(), RecursionError("too\ndeep")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("scalekd.cli.recipes.load_as", fail)
        outcome = cli("recipes", "show", "imagenette")
        outcome.refused()
        harmless(outcome)
