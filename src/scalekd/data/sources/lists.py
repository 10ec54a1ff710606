"""Lists of images: CSV or JSON lines with the columns path and label, and perhaps split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from scalekd.data.names import Names
from scalekd.data.sources.source import Labelling, escapes, parse_json, repeated
from scalekd.data.split import Files, Split
from scalekd.errors import UserError, did_you_mean

SUFFIXES = (".csv", ".jsonl")


@dataclass
class _Rows:
    """The rows of one split."""

    paths: list[str] = field(default_factory=list)
    labels: Labelling = field(default_factory=Labelling)


class ListFile:
    """One list: all splits, told apart by the column `split`, or a single one; see `Source`.

    Args:
        file: The list; paths in it are relative to its folder.
        only: The one split that it holds.
    """

    def __init__(self, file: Path, only: str | None = None) -> None:
        self.file, self.only = file, only

    def has(self, name: str) -> bool:
        return name in self._splits

    def read(self, name: str, *, labelled: bool = True) -> Split:
        if not self.has(name):
            raise UserError(
                f"data: {self.file} has no rows of split {name!r}{did_you_mean(name, self._splits)}; it has "
                f"{', '.join(sorted(self._splits)[:5]) or 'none'}. Name the splits with train_split and val_split"
            )
        rows = self._splits[name]
        if labelled and rows.labels.missing is not None:
            raise UserError(f"data: {self.file}: {rows.labels.missing} has no label")
        _check_links(self.file, rows.paths)
        files = Files(self.file.parent, Names.pack(rows.paths))
        return rows.labels.split(files, labelled=labelled)

    @cached_property
    def _splits(self) -> dict[str, _Rows]:
        found: dict[str, _Rows] = {} if self.only is None else {self.only: _Rows()}
        for line, row in _read(self.file):
            path, split, label = (_text(row.get(key)) for key in ("path", "split", "label"))
            where = f"line {line}"
            if path is None:
                raise UserError(f"data: {self.file}: {where} has no path")
            if escapes(path):
                raise UserError(
                    f"data: {self.file}: {where} names {path!r}; paths must stay in the list's folder, without .."
                )
            if self.only is None and split is None:
                raise UserError(
                    f"data: {self.file}: {where} has no split; add a column split, or name a folder with a list a "
                    "split, such as train.csv and val.csv"
                )
            rows = found.setdefault(self.only or split or "", _Rows())
            rows.paths.append(os.path.normpath(path))
            rows.labels.add(label, where)
        return found


def _text(value: Any) -> str | None:
    """A field as text; None where it is empty or neither text nor an integer."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _read(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a list, each with its line number.

    Raises:
        UserError: If it cannot be read, is not what its ending says, or has no column `path`.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise UserError(f"data: {file} is no regular file")
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            yield from _read_csv(file, lines) if file.suffix == ".csv" else _read_json(file, lines)
    except FileNotFoundError:
        raise UserError(f"data: no such file: {file}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"data: {file} is no text in CSV or JSON lines: {error}") from None


def _read_csv(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    columns = [str(column) for column in reader.fieldnames or ()]
    if "path" not in columns:
        raise UserError(f"data: {file} has no column 'path'; its first line must name the columns (has {columns})")
    if twice := repeated(columns):
        raise UserError(f"data: {file} has two columns {twice!r}; remove one")
    for row in reader:
        if any(row.get(None, ())):  # what is beyond the columns
            raise UserError(
                f"data: {file}: line {reader.line_num} has more fields than there are columns; put quotes around those "
                "with commas"
            )
        yield reader.line_num, row


def _read_json(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"data: {file}: line {number} is no JSON: {getattr(error, 'msg', error)}") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise UserError(f"data: {file}: line {number} is no JSON object with path and label")
        yield number, row


def _check_links(file: Path, paths: list[str]) -> None:
    """Make sure that no link leads out of the list's folder; asks each folder once, not each file."""
    root = os.path.realpath(file.parent)
    links: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in links:
            links[folder] = _links(file, root, folder, path)
        if name in links[folder] and not _inside(os.path.realpath(os.path.join(root, path)), root):
            raise UserError(f"data: {file}: {path!r} is a link that leads out of {file.parent}")


def _links(file: Path, root: str, folder: str, path: str) -> set[str]:
    """The links in a folder of the list's."""
    real = os.path.realpath(os.path.join(root, folder))
    if not _inside(real, root):
        raise UserError(f"data: {file}: {path!r} is in a link that leads out of {file.parent}")
    try:
        with os.scandir(real) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError as error:
        raise UserError(f"data: {file}: {path!r} is not there ({error.strerror})") from None


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))
