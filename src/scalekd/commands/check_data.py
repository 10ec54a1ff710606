"""`scalekd data check`: read every image once and print the findings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scalekd.data import Split, open_data, read_label_free
from scalekd.data.check import Findings, check_split
from scalekd.data.pixels import RULES
from scalekd.data.sources.source import class_differences
from scalekd.errors import printable
from scalekd.progress import RateMeter, image_bar
from scalekd.recipes import Recipe

_SHOWN, _CLASSES_SHOWN = 10, 20
_DARK = 4096  # a sixteenth of white: 12-bit values
_PLAIN = ("RGB:", "L:")  # modes without a note
_WRONG = ("corrupt", "duplicates", "empty")


def run(recipe: Recipe, *, as_json: bool) -> bool:
    """Print the findings; return whether anything is wrong."""
    splits, differences = _splits(recipe)
    found: dict[str, Findings] = {}
    started = time.perf_counter()
    with image_bar(Console(stderr=True)) as bar:
        for name, split in splits.items():
            found[name] = check_split(
                split,
                recipe.workers,
                RateMeter(bar, Text(name).markup, len(split)).add,
                partial(typer.echo, err=True),
                max_pixels=recipe.max_pixels,
                patience=recipe.data_patience,
            )
    seconds = time.perf_counter() - started
    report = _report(found, recipe) | {"classes_differ": differences}
    images = sum(map(len, splits.values()))
    report["images_per_second"] = round(images / seconds, 1)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    wrong = report["leaks"] or report["same_split"] or differences
    return bool(wrong) or any(each[what] for each in report["splits"].values() for what in _WRONG)


def _splits(recipe: Recipe) -> tuple[dict[str, Split], list[str]]:
    """Return the existing splits by name, and how their classes differ, which a run would refuse."""
    assert recipe.data is not None
    source = open_data(recipe.data, recipe)
    train, val, unlabelled = recipe.train_split, recipe.val_split, recipe.unlabelled_split
    if recipe.labels == "none":
        training, validation = read_label_free(recipe.data, train, val, unlabelled, recipe)
        return {train: training} | ({val: validation} if len(validation) else {}), _too_few(validation, val)
    if not source.has(train) and source.has(val):  # as in `evaluate`, which needs one class only
        return {val: source.read(val)}, []
    training, validation = source.read(train), source.read(val)
    differences = class_differences(training, validation, (train, val))
    differences += _too_few(training, train) + _too_few(validation, val)
    splits = {train: training, val: validation}
    if source.has(unlabelled):
        splits[unlabelled] = source.read(unlabelled, labelled=False)
    return splits, differences


def _too_few(split: Split, name: str) -> list[str]:
    """Return a line if the split has one class only."""
    if len(split.classes) != 1:
        return []
    return [f"{split.classes[0]} alone in {name}, where at least two classes are needed"]


def _report(found: dict[str, Findings], recipe: Recipe) -> dict[str, Any]:
    """Return the findings as plain values."""
    val = recipe.val_split
    splits = {
        name: {
            "images": len(each.split),
            "classes": each.counts,
            "width": _spread(each.sizes[:, 0]),
            "height": _spread(each.sizes[:, 1]),
            "modes": dict(each.modes.most_common()),
            "rules": {mode: _rule(mode, each.values.get(mode)) for mode in each.modes},
            "turned": each.turned,
            "corrupt": each.locate(each.corrupt),
            "reasons": {each.split.locate(index): reason for index, reason in each.corrupt.items() if reason},
            "duplicates": [each.locate(group) for group in each.duplicates()],
        }
        | each.split.skipped.plain()
        for name, each in found.items()
    }
    leaks = [
        [each.split.locate(one), found[val].split.locate(other)]
        for name, each in found.items()
        if name != val and val in found
        for other, one in found[val].leaks(each)
    ]
    same = recipe.labels != "none" and recipe.train_split == val
    notes = {name: _notes(each) for name, each in found.items()}
    return {"splits": splits, "leaks": leaks, "same_split": same, "notes": notes}


def _rule(mode: str, values: tuple[float, float] | None) -> str:
    """Return how pixels of a mode are converted, and their range if the mode does not define it."""
    if values is None:
        return RULES[mode]
    least, largest = values
    dark = ": these are almost black" if mode.startswith("I;16") and largest < _DARK else ""
    return f"{RULES[mode]}; found from {least:g} to {largest:g}{dark}"


def _notes(found: Findings) -> list[str]:
    """Return lines on what a split's folder contains in addition to its images."""
    skipped = found.split.skipped
    empty = f"no images in {', '.join(skipped.empty[:_SHOWN])}; a run refuses that" if skipped.empty else ""
    lines = {"left out": skipped.described(), "hidden": skipped.described_hidden(), "empty": empty}
    return [f"{what:10}{line}" for what, line in lines.items() if line]


def _spread(values: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, int] | None:
    """Return the smallest, median and largest value."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _print(report: dict[str, Any]) -> None:
    """Print the findings, human-readable, on one screen."""
    out = Console(highlight=False)
    splits = report["splits"]
    table = _table("", splits)
    for row, value in _ROWS.items():
        table.add_row(row, *(value(split) for split in splits.values()))
    out.print(table)
    classes = _table("class", splits)
    every = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    for name in every[:_CLASSES_SHOWN]:
        classes.add_row(_plain(name), *(str(split["classes"].get(name, "")) for split in splits.values()))
    if classes.row_count:
        out.print(classes)
    if len(every) > _CLASSES_SHOWN:
        out.print(f"{'classes':10}and {len(every) - _CLASSES_SHOWN} more; --json lists all")
    rules = [f"{mode}: {rule}" for split in splits.values() for mode, rule in split["rules"].items()]
    for rule in dict.fromkeys(rule for rule in rules if not rule.startswith(_PLAIN)):
        out.print(f"{'mode':10}{rule}", markup=False, soft_wrap=True)
    for name, lines in report["notes"].items():
        for line in lines:
            out.print(_plain(f"{line[:10]}{name}: {line[10:]}"), soft_wrap=True)
    for difference in report["classes_differ"]:
        out.print(_plain(f"{'classes':10}{difference}; a run refuses that"), soft_wrap=True)
    for split in splits.values():
        _list(out, "unread", [[_with_reason(path, split["reasons"])] for path in split["corrupt"]])
        _list(out, "equal", split["duplicates"])
    _list(out, "leak", report["leaks"])
    if report["same_split"]:
        out.print(f"{'leak':10}training and validation images are the same split")
    out.print(f"read      {report['images_per_second']:.1f} images per second")


def _with_reason(path: str, reasons: dict[str, str]) -> str:
    return f"{path} ({reasons[path]})" if path in reasons else path


def _table(first: str, splits: Iterable[str]) -> Table:
    """Return an empty table with one column per split."""
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
    """Return text with control characters escaped and without interpreting markup."""
    return Text(printable(text))


def _range(spread: dict[str, int] | None) -> str:
    return "" if spread is None else f"{spread['min']} / {spread['median']} / {spread['max']}"


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "images": lambda split: f"{split['images']:,}",
    "classes": lambda split: str(len(split["classes"])),
    "images per class, least / most": lambda split: (
        f"{min(split['classes'].values())} / {max(split['classes'].values())}" if split["classes"] else ""
    ),
    "width, min / median / max": lambda split: _range(split["width"]),
    "height, min / median / max": lambda split: _range(split["height"]),
    "modes": lambda split: ", ".join(f"{mode} {count:,}" for mode, count in split["modes"].items()),
    "stored turned or mirrored, read upright": lambda split: str(split["turned"]),
    "corrupt or unreadable": lambda split: str(len(split["corrupt"])),
    "sets of equal files": lambda split: str(len(split["duplicates"])),
    "files left out": lambda split: str(sum(each["count"] for each in split["left_out"].values())),
    "empty classes": lambda split: str(len(split["empty"])),
}
