"""Find the columns of a list (path, label, split) and the separator between them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.errors import UserError, did_you_mean
from scalekd.recipes import ListKeys

_SEPARATORS = ",;\t|"
# Usual column names, without case, spaces and punctuation. Names in a later row are tried only if no name of an earlier
# row is found; `path`, `label` and `split` themselves take precedence over all of them.
_USUAL = {
    "path": (
        (
            "path", "filepath", "filename", "file", "fname", "fullpath", "relativepath", "relpath", "image", "img",
            "picture", "photo", "imagepath", "imgpath", "imagefile", "imgfile", "imagefilename", "imagefilepath",
            "imagename", "imgname", "uri", "url",
        ),
        ("imageid", "imgid", "name", "id"),
    ),
    "label": (
        (
            "label", "labels", "labelname", "class", "classname", "classlabel", "category", "categoryname", "target",
            "targets", "groundtruth", "gt", "y", "tag",
        ),
        ("labelid", "classid", "categoryid", "labelidx", "classidx", "labelindex", "classindex"),
    ),
    "split": (
        ("split", "set", "subset", "partition", "phase", "datasplit", "splitname", "usage"),
        ("fold", "dataset"),
    ),
}  # fmt: skip
_WORDS = {"path": "the images' paths", "label": "the labels", "split": "the splits"}


class Columns(NamedTuple):
    """Names of a list's columns; None if it has no such column.

    Attributes:
        path: The images' paths.
        label: The labels.
        split: The splits.
        classes: One column for each class, if there are such columns instead of one of labels.
    """

    path: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] = ()


def find_columns(names: Sequence[str], keys: ListKeys, where: str, *, with_split: bool) -> Columns:
    """Find the columns that hold paths, labels and splits.

    Args:
        names: The names of all columns.
        keys: The columns that the user specified.
        where: The list, for messages.
        with_split: Whether to look for a column of splits.

    Raises:
        UserError: If a specified column does not exist, there is no column of paths, or several columns match.
    """
    path = _find("path", names, keys.path_column, where)
    if path is None:
        if any(name.lower().endswith(IMG_EXTENSIONS) for name in names):
            raise UserError(f"{where}: its first line names an image; add a line with the column names before it")
        raise UserError(
            f"{where} has no column 'path' and no other usual name for it (it has {_listed(names)}); specify the "
            "column of the images' paths as path_column, or the separator between the columns as separator"
        )
    label = _find("label", names, keys.label_column, where)
    split = _find("split", names, keys.split_column, where) if with_split else None
    others = tuple(name for name in names if name not in (path, split)) if keys.multi_label and label is None else ()
    return Columns(path, label, split, others)


def _find(role: str, names: Sequence[str], given: str | None, where: str) -> str | None:
    """Find the column of one role: path, label or split."""
    if given is not None:
        found = [name for name in names if name == given] or [name for name in names if _plain(name) == _plain(given)]
        if not found:
            hint = did_you_mean(given, names)
            raise UserError(f"{where} has no column {given!r} ({role}_column){hint}; it has {_listed(names)}")
    else:
        own = [[name for name in names if name == role], [name for name in names if _plain(name) == role]]
        usual = [[name for name in names if _plain(name) in known] for known in _USUAL[role]]
        found = next(filter(None, [*own, *usual]), [])
    if len(set(found)) > 1:
        raise UserError(
            f"{where} has several columns that may hold {_WORDS[role]}: {_listed(found)}; specify one as {role}_column"
        )
    if len(found) > 1:
        raise UserError(f"{where} has two columns {found[0]!r}; remove one")
    return found[0] if found else None


def sniff(line: str) -> str:
    """Guess the separator from a list's first line: the one that yields a column of paths, or else most columns."""

    def worth(separator: str) -> tuple[bool, int]:
        names = split_line(line, separator)
        return any(_plain(name) in _USUAL["path"][0] for name in names), len(names)

    return max(_SEPARATORS, key=worth)


def split_line(line: str, separator: str) -> list[str]:
    """Split a line into fields, without surrounding whitespace; empty if a quote is not closed."""
    try:
        fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []
    return [field.strip(" \t\r\n") for field in fields]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return f"{shown}, ..." if len(names) > 12 else shown or "none"
