"""`scalekd data`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scalekd.cli.help import Command, Group
from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.data import Split, open_data, read_label_free, read_splits
from scalekd.data.check import Findings, check_split
from scalekd.errors import printable
from scalekd.recipes import ListKeys, Recipe, load

data = typer.Typer(cls=Group, help="Look after images.", no_args_is_help=True)
_SHOWN = 10


@data.callback()
def _group() -> None:
    pass


@data.command(cls=Command)
@with_recipe_flags(
    "train_split",
    "val_split",
    "unlabelled_split",
    "labels",
    *ListKeys.model_fields,
    "workers",
    "max_pixels",
    "data_patience",
    told={"workers": "Processes that read images.  [default: 2]"},
)
def check(
    place: Annotated[str, typer.Argument(metavar="DATA", help="As --data of distill.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    flags: Flags,
) -> None:
    """Read every image once: counts a class, sizes, modes; corrupt and duplicate files, leaks to val.

    Duplicates have equal bytes. Exit code 0: nothing is wrong. 1: there are corrupt files, duplicates or leaks. 2: the
    data cannot be read as it is named.

    Examples:
        scalekd data check DATA
        scalekd data check 'SHARDS/{split}-{000..146}.tar' --json > findings.json
    """
    recipe = load(None, flags | {"data": place})
    splits = _splits(recipe)
    found: dict[str, Findings] = {}
    started = time.perf_counter()
    with _bar() as progress:
        for name, split in splits.items():
            advance = _meter(progress, name, len(split))
            found[name] = check_split(
                split,
                recipe.workers,
                advance,
                partial(typer.echo, err=True),
                max_pixels=recipe.max_pixels,
                patience=recipe.data_patience,
            )
    seconds = time.perf_counter() - started
    report = _report(found, recipe.val_split)
    images = sum(map(len, splits.values()))
    report["images_per_second"] = round(images / seconds, 1)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    wrong = report["leaks"] or any(each["corrupt"] or each["duplicates"] for each in report["splits"].values())
    raise typer.Exit(1 if wrong else 0)


def _splits(recipe: Recipe) -> dict[str, Split]:
    """The splits that are there, by name; as a run would read them."""
    assert recipe.data is not None
    source = open_data(recipe.data, recipe)
    train, val, unlabelled = recipe.train_split, recipe.val_split, recipe.unlabelled_split
    if recipe.labels == "none":
        training, validation = read_label_free(recipe.data, train, val, unlabelled, recipe)
        return {train: training} | ({val: validation} if len(validation) else {})
    if not source.has(train) and source.has(val):  # as for `evaluate`
        return {val: source.read(val)}
    training, validation = read_splits(recipe.data, train, val, recipe)
    splits = {train: training, val: validation}
    return splits | ({unlabelled: source.read(unlabelled, labelled=False)} if source.has(unlabelled) else {})


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} img/s"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _meter(progress: Progress, name: str, images: int) -> Callable[[int], None]:
    """A bar for a split; called with the images read since the last call."""
    task, started, done = progress.add_task(Text(name).markup, total=images, rate=0.0), time.perf_counter(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.update(task, completed=done, rate=done / (time.perf_counter() - started))

    return advance


def _report(found: dict[str, Findings], val: str) -> dict[str, Any]:
    """The findings as plain values."""
    splits = {
        name: {
            "images": len(each.split),
            "classes": each.counts,
            "width": _spread(each.sizes[:, 0]),
            "height": _spread(each.sizes[:, 1]),
            "modes": dict(each.modes.most_common()),
            "corrupt": each.locate(each.corrupt),
            "duplicates": [each.locate(group) for group in each.duplicates()],
        }
        for name, each in found.items()
    }
    leaks = [
        [each.split.locate(one), found[val].split.locate(other)]
        for name, each in found.items()
        if name != val and val in found
        for other, one in found[val].leaks(each)
    ]
    return {"splits": splits, "leaks": leaks}


def _spread(values: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, int] | None:
    """Least, median and largest."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _print(report: dict[str, Any]) -> None:
    """The findings for people."""
    out = Console(highlight=False)
    splits = report["splits"]
    table = _table("", splits)
    for row, tell in _ROWS.items():
        table.add_row(row, *(tell(split) for split in splits.values()))
    out.print(table)
    classes = _table("class", splits)
    for name in next(iter(splits.values()))["classes"]:
        classes.add_row(_plain(name), *(str(split["classes"].get(name, "")) for split in splits.values()))
    if classes.row_count:
        out.print(classes)
    for split in splits.values():
        _list(out, "corrupt", [[path] for path in split["corrupt"]])
        _list(out, "equal", split["duplicates"])
    _list(out, "leak", report["leaks"])
    out.print(f"read      {report['images_per_second']:.1f} images a second")


def _table(first: str, splits: Iterable[str]) -> Table:
    """An empty table with a column a split."""
    table = Table(first)
    for name in splits:
        table.add_column(_plain(name), justify="right")
    return table


def _list(out: Console, what: str, groups: list[list[str]]) -> None:
    for group in groups[:_SHOWN]:
        out.print(Text(f"{what:10}").append(_plain(" = ".join(group))), soft_wrap=True)
    if len(groups) > _SHOWN:
        out.print(f"{what:10}and {len(groups) - _SHOWN} more; --json lists all")


def _plain(text: str) -> Text:
    """Text as it is, with what a terminal would act on spelt out."""
    return Text(printable(text))


def _range(spread: dict[str, int] | None) -> str:
    return "" if spread is None else f"{spread['min']} / {spread['median']} / {spread['max']}"


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "images": lambda split: f"{split['images']:,}",
    "classes": lambda split: str(len(split["classes"])),
    "images a class, least / most": lambda split: (
        f"{min(split['classes'].values())} / {max(split['classes'].values())}" if split["classes"] else ""
    ),
    "width, min / median / max": lambda split: _range(split["width"]),
    "height, min / median / max": lambda split: _range(split["height"]),
    "modes": lambda split: ", ".join(f"{mode} {count:,}" for mode, count in split["modes"].items()),
    "corrupt": lambda split: str(len(split["corrupt"])),
    "sets of equal files": lambda split: str(len(split["duplicates"])),
}
