"""`scalekd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.recipes import load


@with_recipe_flags(
    "data", "teacher_weights", "precision", "accelerator",
    help_texts={
        "data": "Location of the images. Default: where the run found them.",
        "teacher_weights": "Location of the teacher's weights. Default: where the run found them.",
        "precision": "Autocast type for the figures. Default: the run's.",
        "accelerator": "Device for the figures. Default: the run's.",
    },
)  # fmt: skip
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of a group of runs.")],
    *,
    output: Annotated[Path | None, typer.Option(help="File to write. Default: report.html in the run folder.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Number of validation images for the figures; 0 for none.")] = 256,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print a summary for a pull request; with --output, write it to the file."),
    ] = False,
    flags: Flags,
) -> None:
    """Write a page about one or more runs: results, training curves, the paper's figures, how to reproduce them.

    The page is a single file that loads nothing. Runs may still be training. What cannot be shown, for example because
    data or weights are missing, is left out, and the page lists it.

    Examples:
        scalekd report runs/mobilenet    # writes runs/mobilenet/report.html
        scalekd report runs/alone runs/mobilenet --output compare.html
        scalekd report runs/alone runs/mobilenet --markdown
    """
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.report import run

    run(runs, flags, output=output, images=images, markdown=markdown)
