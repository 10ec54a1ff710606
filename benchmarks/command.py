"""Shared code of the benchmarks' commands: one-line errors, fresh processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from scalekd.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def positive(text: str) -> int:
    """Parse an integer above 0, for `argparse`."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def say(text: str) -> None:
    """Print to standard error; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def ask_child(script: str, *arguments: str) -> Any:
    """Run `script` in a fresh process and return the JSON that it prints.

    If the process fails, it has printed the reason, and this process exits with 2; 1 means that a goal was not reached.
    """
    child = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        sys.exit(2)
    return json.loads(child.stdout)


def check_output(path: Path | None) -> None:
    """Check, before anything is measured, that the result can be written.

    Raises:
        UserError: If its folder does not exist.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"output: no such folder: {path.parent}")
