"""Absurd arguments: each command ends at once with one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli

from scalekd.recipes import Recipe

ODD = ("", "x" * 10_000, "\udc80", "\x1b[31m\n", "pipe.safetensors", "zero.safetensors", "folder.safetensors", "loop")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder that contains things that are not regular files."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.safetensors")
    Path("zero.safetensors").symlink_to("/dev/zero")
    Path("folder.safetensors").mkdir()
    Path("loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_what_is_no_file_is_refused_by_every_command(
    cli: Cli, here: Path, data: Path, teacher_file: Path, value: str
) -> None:
    run = ("distill", "--data", data, "--output", "run", "--no-check-teacher", *TINY_RUN)
    for command in (
        (*run, "--teacher", value),
        (*run, "--teacher", "vit_tiny_patch16_224", "--teacher-weights", value or "nowhere"),
        (*run, "--method", "none", "--student", value),
        (*run, "--method", "none", "--student-weights", value or "nowhere"),
        (*run, "--teacher", teacher_file, "--recipe", value),
        (*run, "--teacher", teacher_file, "--data", value or "nowhere"),
        ("adapt", value, "--data", data, "--output", "adapted"),
        ("evaluate", value, "--data", data),
        ("evaluate", "resnet18", "--weights", value or "nowhere", "--data", data),
        ("inspect", value, "resnet18"),
        ("inspect", teacher_file, value),
        ("inspect", teacher_file, "resnet18", "--device", value),
        ("recipes", "show", value),
        (value,),
    ):
        outcome = cli(*command)
        outcome.refused()
        assert all(line.isprintable() for line in outcome.err.splitlines())
        assert len(outcome.err) < 5000


FREE = {  # any text is valid
    "teacher", "teacher_weights", "teacher_tokens", "teacher_tail", "cache", "unlabelled_split", "teacher_args",
    "student_args",
}  # fmt: skip
KEYS = [key for key, field in Recipe.model_fields.items() if field.annotation is not bool and key not in FREE]


@pytest.mark.parametrize("key", KEYS)
def test_absurd_values_are_refused_for_every_key(cli: Cli, data: Path, tmp_path: Path, key: str) -> None:
    run = ("distill", "--method", "none", "--data", data, "--output", tmp_path / "run", *TINY_RUN)
    for value in ("-1e300", "nan", "\x1b[31m"):
        cli(*run, f"--{key.replace('_', '-')}={value}").refused()
    outcome = cli(*run, f"--{key.replace('_', '-')}={'9' * 30}")
    if outcome.code != 0:  # some keys, such as weights of losses, may be that large
        outcome.refused()
