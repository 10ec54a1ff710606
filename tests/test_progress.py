"""What takes long says so on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest
from conftest import Cli
from rich.console import Console

from scalekd.progress import watched, working


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_told_what_takes_long(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with working("reading [data]/a", console):
        pass
    assert list(watched([1, 2, 3], "shards", console)) == [1, 2, 3]
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("reading [data]/a" in written, "shards" in written) == (terminal, terminal)
    assert bool(written) == terminal


def test_the_planner_says_on_a_terminal_that_it_works(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ("inspect", "vit_tiny_patch16_224", "resnet18", "--resolution", "64", "--teacher-resolution", "64")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to say that a stream is a terminal
    outcome = cli(*pair)
    assert "planning" in outcome.err
    assert "planning" not in outcome.out
