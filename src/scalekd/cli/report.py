"""`scalekd report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.errors import UserError, printable
from scalekd.recipes import load
from scalekd.recipes.schema import Recipe, validate

if TYPE_CHECKING:
    from scalekd.report import Record

_PAGE = "report.html"


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
    from scalekd.atomic import write_bytes
    from scalekd.report import measure_figures, read_runs, render_markdown, render_page

    records = [_with_flags(record, flags) for record in read_runs(runs)]
    if output is None and not markdown and len(records) > 1:
        raise UserError("output: none is given; pass --output FILE.html (it has a default for a single run only)")
    figures = [measure_figures(record, images) for record in records]
    if markdown:
        text = render_markdown(records, figures)
        if output is None:
            typer.echo(text, nl=False)
            return
    else:
        text = render_page(records, figures)
    target = output or records[0].folder.path / _PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, text.encode(errors="backslashreplace"))
    typer.echo(f"report    {printable(target)} ({len(text) / 1e6:.2f} MB)")


def _with_flags(record: Record, flags: dict[str, Any]) -> Record:
    """Return the record with its recipe updated by the user's flags."""
    if record.recipe is None or not flags:
        return record
    known = {key: value for key, value in record.keys.items() if key in Recipe.model_fields}
    return replace(record, recipe=validate(Recipe, known | flags))
