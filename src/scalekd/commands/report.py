"""`scalekd report`: read runs, measure the figures, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from scalekd.atomic import write_bytes
from scalekd.errors import UserError, printable
from scalekd.recipes.schema import Recipe, validate
from scalekd.report import Record, measure_figures, read_runs, render_markdown, render_page

_PAGE = "report.html"


def run(runs: Sequence[Path], flags: dict[str, Any], *, output: Path | None, images: int, markdown: bool) -> None:
    """Write the page or print the summary; see the command for the arguments."""
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
