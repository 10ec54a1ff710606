"""What takes long says so on a terminal, and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest
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


def test_the_planner_says_on_a_terminal_that_it_works() -> None:
    own, its = pty.openpty()
    command, said = [sys.executable, "-m", "scalekd", "inspect", "--recipe", "quickstart"], b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, env=os.environ | {"TERM": "xterm"}) as run:
        os.close(its)
        with suppress(OSError):  # the end of a terminal whose other side is closed
            while part := os.read(own, 65536):
                said += part
    os.close(own)
    assert run.returncode == 0, said
    assert b"planning" in said
