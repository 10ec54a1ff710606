"""`scalekd quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the digits and all runs; replaced.")] = Path(
        "runs/quickstart"
    ),
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each method.")] = 3,
    labelled: Annotated[int, typer.Option(min=50, max=1247, help="Images the students see.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Try the whole method in minutes, offline: a ViT teaches a small CNN to read handwritten digits.

    The teacher sees most of scikit-learn's 1,797 digits, the students a small part of the same images. Test images
    are seen by neither. Every run leaves its folder: recipe, logs, weights.
    """
    from scalekd.commands.quickstart import run

    run(output, seeds=seeds, labelled=labelled, as_json=as_json)
