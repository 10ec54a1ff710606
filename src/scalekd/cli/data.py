"""`scalekd data`."""

from __future__ import annotations

from typing import Annotated

import typer

from scalekd.cli.help import Command, Group
from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.recipes import SourceKeys, load

data = typer.Typer(cls=Group, help="Check images.", no_args_is_help=True)


@data.callback()
def _group() -> None:
    pass


@data.command(cls=Command)
@with_recipe_flags(
    "unlabelled_split",
    "labels",
    *SourceKeys.model_fields,
    "workers",
    "max_pixels",
    "data_patience",
    help_texts={"workers": "Number of processes that read images.  [default: 2]"},
)
def check(
    place: Annotated[str, typer.Argument(metavar="DATA", help="As --data of distill.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    flags: Flags,
) -> None:
    """Read every image once; report counts, sizes, pixel modes, left-out, corrupt and duplicate files, and leaks.

    Duplicates are files with equal bytes. Exit code 0: nothing is wrong. 1: there are unreadable files, duplicates,
    leaks, empty classes or classes that are in one split only. 2: the data cannot be read as specified.

    Examples:
        scalekd data check DATA
        scalekd data check 'SHARDS/{split}-{000..146}.tar' --json > findings.json
    """
    recipe = load(None, flags | {"data": place})
    from scalekd.commands.check_data import run

    raise typer.Exit(1 if run(recipe, as_json=as_json) else 0)
