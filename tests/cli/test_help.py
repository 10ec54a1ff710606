"""`--help` is complete at any width, states the true defaults, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import Cli

COMMANDS: tuple[tuple[str, ...], ...] = (
    (),
    ("quickstart",),
    ("distill",),
    ("evaluate",),
    ("adapt",),
    ("cache",),
    ("inspect",),
    ("export",),
    ("predict",),
    ("report",),
    ("import",),
    ("data",),
    ("data", "check"),
    ("recipes",),
    ("recipes", "show"),
    ("transfer",),
    ("transfer", "segmentation"),
    ("transfer", "detection"),
)
EVERYTHING = ("--help", "all")


def examples(text: str) -> list[str]:
    """Return the example commands at the end of a help text, with continuation lines joined."""
    _, _, shown = text.partition("\nExamples:\n")
    return [line.strip() for line in shown.replace("\\\n", " ").splitlines() if line.strip()]


def defaults(text: str) -> dict[str, str]:
    """Return each option's default as the help states it."""
    options = re.split(r"\n  --", " ".join(text.partition("Options:")[2].split(" ")))
    found = {}
    for option in options:
        if shown := re.search(r"\[default: (.*?)\]", " ".join(option.split())):
            found[re.split(r"[\s]", option)[0]] = shown[1]
    return found


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off_at_any_width(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for command in COMMANDS:
        outcome = cli(*command, *EVERYTHING)
        assert outcome.code == 0, command
        assert max(map(len, outcome.out.splitlines())) <= width, command
        for mark in ("\N{HORIZONTAL ELLIPSIS}", "<str>", "<path>", "<int>", "default: ("):
            assert mark not in outcome.out, command
    assert "norm,bias,position,class_token]" in cli("distill", *EVERYTHING).out


def test_help_lists_what_one_needs_first(cli: Cli) -> None:
    short, whole = cli("distill", "--help").out, cli("distill", *EVERYTHING).out
    assert len(short.splitlines()) < 110
    for flag in ("--teacher", "--student", "--data", "--epochs", "--batch", "--lr", "--output", "--recipe"):
        assert f"\n  {flag} " in short, flag
    more = re.search(r"(\d+) more flags: scalekd distill --help all\n", short)
    assert more is not None
    listed = [len(re.findall(r"\n  --", text)) for text in (short, whole)]
    assert listed[1] - listed[0] == int(more[1])
    assert "more flags" not in whole
    assert "--softmax-scale" in whole


def test_examples_have_flags_that_are_there(cli: Cli) -> None:
    texts = {command: cli(*command, *EVERYTHING).out for command in COMMANDS}
    shown = [line for text in texts.values() for line in examples(text)]
    assert len(shown) >= 20
    for line in shown:
        words = line.split("#")[0].split()
        if words[0] == "scalekd":
            name = words[1:3] if tuple(words[1:3]) in texts else words[1:2]
            flags = {word for word in words if word.startswith("--")}
            assert flags <= set(re.findall(r"--[a-z0-9-]+", texts[tuple(name)])), line


def test_the_defaults_shown_are_those_that_hold(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    text = cli("adapt", "--help").out
    shown = defaults(text)
    assert shown["batch"] == "64"
    assert "resolution" not in shown
    small = ("--batch", "6", "--workers", "0", "--resolution", "32")
    run = cli("adapt", teacher_file, "--data", data, "--mode", "finetune", *small, "--output", tmp_path / "run")
    assert run.code == 0, run.err
    held = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    for key in ("epochs", "lr", "weight_decay", "warmup_epochs", "crop_scale", "crop_fraction", "seed", "max_corrupt"):
        values = held[key] if isinstance(held[key], list) else [held[key]]
        assert [float(part) for part in shown[key.replace("_", "-")].split(",")] == values, key
    assert defaults(cli("predict", "--help").out)["batch"] == "32"
    assert "precision" not in defaults(cli("report", "--help").out)  # its default is the run's


def test_a_flag_without_effect_is_neither_offered_nor_obeyed(cli: Cli, teacher_file: Path, tmp_path: Path) -> None:
    offered = cli("cache", "--help").out
    for flag in ("--lr", "--student", "--softmax-scale", "--devices"):
        assert flag not in offered
    cli("cache", "--lr", "0.1", "--student", "resnet18").refused("cache: no folder is given")  # accepted as in distill
    adapt = ("adapt", teacher_file, "--data", tmp_path, "--output", tmp_path / "out")
    cli(*adapt, "--epochs", "3").refused("epochs", "--mode finetune")
    cli(*adapt, "--warmup-epochs", "1").refused("--warmup-epochs", "--mode finetune")
    cli(*adapt, "--resume").refused("resume", "--mode finetune")


def test_without_a_command_the_help_is_shown_as_it_is(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: scalekd")
    assert "\n  distill " in outcome.err
