"""Shared code of the experiments' commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from scalekd.errors import UserError


def say(text: str) -> None:
    """Print to standard error; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; wrong input prints one line and exits with 2."""
    try:
        sys.exit(command())
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
