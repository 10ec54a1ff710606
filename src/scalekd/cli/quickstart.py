"""`scalekd quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    output: Annotated[
        Path, typer.Option(help="Folder for the digits and all runs; an earlier quickstart in it is replaced.")
    ] = Path("runs/quickstart"),
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds for each method.")] = 3,
    labelled: Annotated[int, typer.Option(min=50, max=1247, help="Number of labels for the students.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Try the whole method in minutes, offline: a ViT teaches a small CNN to read handwritten digits.

    The teacher is trained on most of scikit-learn's 1,797 digits. The students see the same images, but have labels for
    50 of them only. None sees the test images. Each run has its folder with recipe, logs and weights.
    """
    from scalekd.commands.quickstart import run

    run(output, seeds=seeds, labelled=labelled, as_json=as_json)
