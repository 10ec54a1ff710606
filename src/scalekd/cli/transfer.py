"""`scalekd transfer`: what a student is worth as the backbone of another task."""

from __future__ import annotations

import typer

from scalekd.cli.detection import detection

transfer = typer.Typer(help="Train a student as the backbone of another task.", no_args_is_help=True)


@transfer.callback()
def _tasks() -> None:
    """Train a student as the backbone of another task."""


transfer.command()(detection)
