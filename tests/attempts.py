"""Attempts at a run in processes of their own, without the seconds that the imports take; and what a run has left."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalekd.cli.main import run as command

CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
_CLOCKED = ("images_per_second", "data_wait")


def start(log: Path, *args: str | Path) -> int:
    """Run the command line in a forked process; its process id. torch has started no threads that it would lack."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()  # a group of its own, as a shell's job has
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (until the process ends)
        sys.argv = ["scalekd", *map(str, args)]
        torch.set_num_threads(1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        command()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process, or what killed it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines(run: Path) -> list[dict[str, Any]]:
    """The log, without the values that depend on the clock."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: None if name in _CLOCKED else value for name, value in line.items()} for line in logged]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each figure as TensorBoard reads them, without the values that depend on the clock."""
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, 0.0 if tag in _CLOCKED else event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def result(run: Path) -> dict[str, Any]:
    """The result but for the time and the energy it took."""
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return {key: value for key, value in content.items() if key not in ("seconds", "energy")}


def assert_same(run: Path, whole: Path) -> None:
    """Assert that a run has left what an undisturbed one has."""
    assert lines(run) == lines(whole)
    assert events(run) == events(whole)
    assert result(run) == result(whole)
