"""`scalekd cache`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.data.cache.store import size
from scalekd.errors import printable
from scalekd.recipes import load
from scalekd.training import fill_cache


@with_recipe_flags()
def cache(
    *,
    recipe: Annotated[str | None, typer.Option(help="A shipped recipe's name or a YAML file.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how large it will be.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make truncated and foreign shards again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    flags: Flags,
) -> None:
    """Run the teacher once over all augmented images and keep its outputs for later runs.

    Takes the flags of the `distill` that is to read it, --cache among them. Stopped, it goes on where it was; several
    processes may fill one cache together.
    """
    found = fill_cache(load(recipe, flags, partial(typer.echo, err=True)), plan=plan, rebuild=rebuild)
    if as_json:
        typer.echo(json.dumps(found))
    elif not plan:
        made = f"{found['made']:,} made now, {found['images_per_second']:.1f} a second" if found["made"] else "complete"
        typer.echo(
            f"cache     {printable(found['folder'])}: {found['images']:,} images x {found['views']} view(s), "
            f"{size(found['bytes'])}; {made}"
        )
