"""Lists of images: delimited text or JSON lines with paths, labels and, optionally, splits."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from scalekd.data.names import Names
from scalekd.data.sources.columns import Columns, find_columns, sniff, split_line
from scalekd.data.sources.paths import place
from scalekd.data.sources.source import Labelling, is_file_name, label_text, parse_json
from scalekd.data.split import Files, Split
from scalekd.errors import UserError, did_you_mean
from scalekd.recipes import AS_USUAL, ListKeys

_JSON = (".jsonl", ".ndjson")
_BLANKS = " \t"
_SEVERAL = " (if an image may have several labels or none of them, add multi_label)"
_TRUE, _FALSE = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
SUFFIXES = (".csv", ".tsv", *_JSON, ".txt")
"""Endings of list files; case is ignored."""

_Row = Mapping[str, Any]


@dataclass
class _Rows:
    """The rows of one split."""

    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: Labelling = field(default_factory=Labelling)


class ListFile:
    """A list that holds several splits, distinguished by a column, or a single one; see `Source`.

    Args:
        file: The list; paths in it are relative to its folder or to the working folder.
        only: The name of the single split that it holds; None if a column names the splits.
        keys: Its columns and separator, if they are not the usual ones.
        unsplit: The split of all rows if no column names the splits; by default, that is an error.
    """

    def __init__(
        self, file: Path, only: str | None = None, keys: ListKeys = AS_USUAL, unsplit: str | None = None
    ) -> None:
        self.file, self.only, self.keys, self.unsplit = file, only, keys, unsplit
        self._columns: dict[tuple[str, ...], Columns] = {}

    def has(self, name: str) -> bool:
        return name in self._splits

    def read(self, name: str, *, labelled: bool = True) -> Split:
        if not self._splits or (self.only and not len(self._splits[self.only].labels)):
            raise UserError(f"data: {self.file} has column names but no images")
        if not self.has(name):
            raise UserError(
                f"data: {self.file} has no rows of split {name!r}{did_you_mean(name, self._splits)}; it has "
                f"{', '.join(sorted(self._splits)[:5]) or 'none'}. Specify two different splits as train_split "
                "and val_split"
            )
        rows = self._splits[name]
        if labelled and rows.labels.missing is not None:
            raise UserError(f"data: {self.file}: {rows.labels.missing} has no label{self._no_column()}{_SEVERAL}")
        root, paths = place(self.file, rows.paths, rows.lines)
        store = Files(root, Names.pack(paths))
        if self.keys.multi_label:
            classes = next(iter(self._columns.values())).classes
            return rows.labels.split_multi(store, self.keys.label_separator, classes, labelled=labelled)
        return rows.labels.split(store, labelled=labelled)

    @cached_property
    def _splits(self) -> dict[str, _Rows]:
        found: dict[str, _Rows] = {} if self.only is None else {self.only: _Rows()}
        seen: dict[str, set[str]] = {}  # images with several labels
        for line, row in _read(self.file, self.keys, with_split=self.only is None):
            where = f"line {line}"
            columns = self._columns_of(row, line)
            path = row[columns.path]
            if path is None or not str(path).strip(_BLANKS):
                raise UserError(f"data: {self.file}: {where} has no path (column {columns.path!r})")
            name = str(path) if isinstance(path, str | int) and not isinstance(path, bool) else ""
            if not is_file_name(name):
                raise UserError(f"data: {self.file}: {where} names {path!r}, which is not a valid file path")
            split = self.only or self._text(row, columns.split, line)
            if split is None and columns.split is None:
                split = self.unsplit
            if split is None:
                raise UserError(f"data: {self.file}: {where} has no split{self._how_to_split(columns)}")
            rows = found.setdefault(split, _Rows())
            if self.keys.multi_label and name in seen.setdefault(split, set()):
                raise UserError(
                    f"data: {self.file}: {where} names {name!r} again; put all labels of an image into one row"
                )
            if self.keys.multi_label:
                seen[split].add(name)
            rows.lines.append(line)
            rows.paths.append(name)
            label = self._labels(row, columns, line) if self.keys.multi_label else self._text(row, columns.label, line)
            rows.labels.add(label, where)
        self._check_numbers(found)
        return found

    def _check_numbers(self, found: Mapping[str, _Rows]) -> None:
        """Check that the column of labels, found by its name, is not a single class with 0 and 1 in each row.

        Raises:
            UserError: If it holds nothing but 0 and 1.
        """
        labels = set().union(*(rows.labels.names for rows in found.values()))
        texts = {label for label in labels if isinstance(label, str)}
        if self.keys.multi_label and self.keys.label_column is None and texts and texts <= {"0", "1"}:
            column = next(columns.label for columns in self._columns.values())
            raise UserError(
                f"data: {self.file}: the column {column!r} holds nothing but 0 and 1; if it is a class, rename it; if "
                "these are names of classes, specify it as label_column"
            )

    def _columns_of(self, row: _Row, line: int) -> Columns:
        """Return the columns of a row; in JSON, each row may have different ones."""
        names = tuple(row)
        if names not in self._columns:
            where = f"data: {self.file}: line {line}" if _is_json(self.file) else f"data: {self.file}"
            self._columns[names] = find_columns(names, self.keys, where, with_split=self.only is None)
        return self._columns[names]

    def _text(self, row: _Row, column: str | None, line: int) -> str | None:
        """Return a row's label or split name; None if it has none."""
        value = None if column is None else row[column]
        if isinstance(value, str) and not _is_json(self.file):
            value = value.strip(_BLANKS)
        try:
            return label_text(value)
        except ValueError as error:
            several = _SEVERAL if isinstance(value, list) else ""
            raise UserError(f"data: {self.file}: line {line}: {column} is {error}{several}") from None

    def _labels(self, row: _Row, columns: Columns, line: int) -> str | tuple[str, ...] | None:
        """Return a row's classes: a text in which they are separated, or a tuple; None if there is no such column."""
        if columns.label is None:
            if not columns.classes or _is_json(self.file):  # a row of JSON has its own keys
                return None
            return tuple(name for name in columns.classes if self._is_set(row[name], name, line))
        value = row[columns.label]
        if isinstance(value, list | tuple):
            return tuple(filter(None, (self._text({columns.label: each}, columns.label, line) for each in value)))
        return self._text(row, columns.label, line) or ()

    def _is_set(self, value: Any, name: str, line: int) -> bool:
        """Return whether an image has the class of a column."""
        found = str(value).strip().lower()
        if found not in _TRUE | _FALSE:
            raise UserError(
                f"data: {self.file}: line {line}: {name} is {value!r}, neither 0 nor 1; without a column of labels, "
                "every other column is a class. Specify label_column, or remove the column"
            )
        return found in _TRUE

    def _no_column(self) -> str:
        """Explain a missing label if there is no column of labels; otherwise empty."""
        names = next((names for names, columns in self._columns.items() if columns.label is None), None)
        if names is None:
            return ""
        return f": there is no column of labels among {', '.join(names)}; specify it as label_column"

    def _how_to_split(self, columns: Columns) -> str:
        if columns.split is not None:
            return f" (column {columns.split!r})"
        return (
            "; there is no column of splits. Specify it as split_column, or write one list per split, such as "
            "train.csv and val.csv, and pass their folder as data (with train_split and val_split for other names), or "
            "hold out a part of all rows with val_share"
        )


def is_list(path: Path) -> bool:
    """Whether a file's ending is that of a list."""
    return path.suffix.lower() in SUFFIXES


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in _JSON


def _read(file: Path, keys: ListKeys, *, with_split: bool) -> Iterator[tuple[int, _Row]]:
    """Yield the rows of a list with their line numbers.

    Raises:
        UserError: If the list cannot be read, or its content does not match its ending.
    """
    if file.exists() and not file.is_file():  # opening a pipe would block
        raise UserError(f"data: {file} is not a regular file")
    try:
        with open(file, encoding=_encoding(file), newline="") as lines:
            yield from _read_json(file, lines) if _is_json(file) else _read_csv(file, lines, keys, with_split)
    except FileNotFoundError:
        raise UserError(f"data: no such file: {file}") from None
    except UnicodeError as error:
        raise UserError(f"data: {file} is not UTF-8 text ({error}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"data: {file} is not text with columns: {error}") from None


def _encoding(file: Path) -> str:
    """UTF-8 unless the file's first bytes say UTF-16, as Excel's "Unicode text" does."""
    with open(file, "rb") as opened:
        begin = opened.read(2)
    return "utf-16" if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _read_csv(file: Path, lines: Iterator[str], keys: ListKeys, with_split: bool) -> Iterator[tuple[int, _Row]]:
    first = next(lines, "")
    separator = keys.separator or sniff(first)
    columns = split_line(first, separator)
    if not columns:
        raise UserError(f"data: {file} has no columns; its first line must name them, such as path,label,split")
    reader = csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=True, strict=True)
    next(reader)
    find_columns(columns, keys, f"data: {file}", with_split=with_split)  # checks the columns even if there are no rows
    for row in reader:
        if any(row[len(columns) :]):
            raise UserError(
                f"data: {file}: line {reader.line_num} has more fields than there are columns; put quotes around "
                f"fields that contain {separator!r}"
            )
        if row:
            yield reader.line_num, dict(zip_longest(columns, row[: len(columns)], fillvalue=""))


def _read_json(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"data: {file}: line {number} is not JSON: {getattr(error, 'msg', error)}") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise UserError(f"data: {file}: line {number} is not a JSON object (with a path and a label)")
        yield number, row
