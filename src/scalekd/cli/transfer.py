"""`scalekd transfer`: measure a student as the backbone of another task."""

from __future__ import annotations

import typer

from scalekd.cli.detection import detection
from scalekd.cli.help import Command, Group
from scalekd.cli.segmentation import segmentation

transfer = typer.Typer(cls=Group, help="Train a student as the backbone of another task.", no_args_is_help=True)
for task in (detection, segmentation):
    transfer.command(cls=Command)(task)
