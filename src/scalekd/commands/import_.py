"""`scalekd import`: convert a checkpoint of the authors' framework."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from scalekd.exports.official import import_checkpoint
from scalekd.progress import working


def run(checkpoint: Path, model: str, output: Path, model_args: Mapping[str, Any]) -> None:
    """Convert the checkpoint and print what it held; see the command for the arguments."""
    with working(f"reading {checkpoint}"):
        classifier = import_checkpoint(checkpoint, model, **model_args)
    digest = classifier.save(output)
    typer.echo(f"imported  {classifier}; weights in {output}, SHA-256 {digest[:16]}")
