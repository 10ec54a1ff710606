"""`scalekd recipes`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml

from scalekd.cli.help import Command, Group
from scalekd.keys import Keys
from scalekd.recipes import Recipe, follows_images, load, load_as, names, resolved, transfer_names
from scalekd.recipes.load import BY_IMAGES, SIZES
from scalekd.recipes.own_images import CHOSEN
from scalekd.tasks.detection import Detection
from scalekd.tasks.segmentation import Segmentation

recipes = typer.Typer(cls=Group, invoke_without_command=True)
_KINDS: dict[str, type[Keys]] = {
    "detection": Detection,
    "segmentation": Segmentation,
}  # by the part of the name before the slash
_SHOWN = ("teacher", "student", "optimizer", "batch", "lr", "epochs")


@recipes.callback()
def list_recipes(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and keys as JSON.")] = False,
) -> None:
    """List the shipped recipes; `distill --recipe NAME` runs one, `distill --recipe NAME --check` tries it out.

    Examples:
        scalekd recipes
        scalekd recipes show imagenet/swin_large-resnet50
    """
    if context.invoked_subcommand is not None:
        return
    keys = {name: resolved(load(name, {})) for name in names()}
    if as_json:
        typer.echo(json.dumps([{"name": name} | own for name, own in keys.items()]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", *_SHOWN):
        table.add_column(column, no_wrap=True)
    for name, own in keys.items():
        chosen = CHOSEN if follows_images(name) else ()
        shown = ("by images" if key in chosen else "" if own[key] is None else f"{own[key]}" for key in _SHOWN)
        table.add_row(name, *shown)
    Console(width=200).print(table)
    typer.echo("\nof `transfer TASK`: " + ", ".join(transfer_names()))


@recipes.command(cls=Command)
def show(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print a recipe fully resolved: its bases merged, every key of its method listed.

    Keys that follow from the number of images are left out.
    """
    recipe = load_as(_KINDS.get(name.partition("/")[0], Recipe), name, {})
    sized = follows_images(name)
    keys = {key: value for key, value in resolved(recipe).items() if not (sized and key in CHOSEN)}
    keys = {SIZES: BY_IMAGES, **keys} if sized else keys
    typer.echo(json.dumps(keys) if as_json else yaml.safe_dump(keys, sort_keys=False), nl=as_json)
    if sized:
        typer.echo(f"note: {', '.join(CHOSEN)} follow from the number of training images in a run", err=True)
