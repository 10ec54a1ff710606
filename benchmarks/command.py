"""What the benchmarks' commands share: errors of one line, fresh processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from scalekd.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def positive(text: str) -> int:
    """A whole number above 0, for `argparse`."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def say(text: str) -> None:
    """Tell a person; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def ask_child(script: str, *arguments: str) -> Any:
    """The JSON that `script` prints in a fresh process.

    Where that fails it has said why, and this process ends with exit code 2: 1 is for what a benchmark finds.
    """
    child = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        sys.exit(2)
    return json.loads(child.stdout)


def check_output(path: Path | None) -> None:
    """Make sure, before anything is measured, that there is a place for the result.

    Raises:
        UserError: If its folder is not there.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"output: no such folder: {path.parent}")
