"""Hugging Face data sets: from the hub by name, or from a local folder of parquet or arrow files."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, overload

import huggingface_hub

from scalekd.data.endings import is_hidden
from scalekd.data.sources.source import Labelling, label_text
from scalekd.data.split import UNLABELLED, Split
from scalekd.errors import UserError, did_you_mean, first_line, printable
from scalekd.progress import working

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "cls")
_AT_ONCE = 10_000
_OTHER_NAMES = {"val": ("validation", "valid")}


class RowNames(Sequence[str]):
    """Names for rows without a name: the table's identifier and the row's index, formatted on access."""

    def __init__(self, table: str, length: int) -> None:
        self.table, self.length = table, length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        every = range(self.length)[index]
        return f"{self.table}/{every}" if isinstance(every, int) else [f"{self.table}/{one}" for one in every]


@dataclass(frozen=True)
class Rows:
    """Images in a column of a table; see `Store`.

    Attributes:
        root: The data set and its split, for messages.
        names: The names of the rows.
        column: A `datasets.Dataset` with one column, whose images are not decoded.
    """

    root: Path
    names: RowNames
    column: Any

    def locate(self, index: int) -> str:
        return f"{self.root}/{index}"

    def open(self, index: int) -> io.BytesIO:
        (value,) = self.column[index].values()
        content = value and value["bytes"]
        if content is None:  # a path instead, which is not opened because it could point anywhere
            raise OSError(f"{self.locate(index)} holds no image")
        return io.BytesIO(content)

    def size(self, index: int) -> int:
        return self.open(index).getbuffer().nbytes


class HubSource:
    """A Hugging Face data set with a column of images and one of labels; see `Source`.

    Args:
        name: `NAME` or `NAME:CONFIG` on the hub, or a local folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        if not name:
            raise UserError("data: hf: names no data set; use hf:NAME, hf:NAME:CONFIG or hf:FOLDER")

    def has(self, name: str) -> bool:
        return self._own(name) is not None

    def read(self, name: str, *, labelled: bool = True) -> Split:
        own = self._own(name)
        if own is None:
            found = list(self._splits)
            raise UserError(
                f"data: hf:{self.name} has no split {name!r}{did_you_mean(name, found)}; it has "
                f"{', '.join(found[:5])}. Specify two different splits as train_split and val_split"
            )
        with self._one_line():
            return self._read(self._splits[own], Path(f"hf:{self.name}/{own}"), labelled)

    def _own(self, name: str) -> str | None:
        """Return the data set's own name for a split, or None if it has no such split."""
        return next((each for each in (name, *_OTHER_NAMES.get(name, ())) if each in self._splits), None)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """The data set's tables by split."""
        try:
            import datasets  # noqa: PLC0415  # optional dependency
        except ImportError:
            raise UserError("data: hf: needs the datasets library; pip install '.[hf]'") from None
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # would report the use of local folders, too
        # Set here because the environment variable is read only once, when timm imports huggingface_hub.
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        with self._one_line():
            return dict(self._load(datasets))

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn the library's errors, which are of many types (some a plain Exception), into a one-line UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"data: hf:{self.name} cannot be loaded: {first_line(error)}") from None

    def _load(self, datasets: Any) -> Any:
        folder = Path(self.name)
        if not folder.is_dir():
            if folder.is_absolute() or self.name.startswith("."):
                raise UserError(f"data: hf: no such folder: {folder}")
            hub, _, config = self.name.partition(":")
            return datasets.load_dataset(hub, config or None)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        for kind in ("parquet", "arrow"):  # pass the files explicitly, so that the library reads nothing else
            if files := _files(folder, kind):
                return datasets.load_dataset(kind, data_files=files)
        raise UserError(f"data: hf: {folder} holds no parquet or arrow files; name them like train-00000.parquet")

    def _read(self, table: Any, root: Path, labelled: bool) -> Split:
        import datasets  # noqa: PLC0415

        image = _image_column(table, root)
        undecoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        classes, texts = _labels(table, root) if labelled else ([], repeat(None, len(table)))
        labels = Labelling()
        with working(f"reading the labels of {printable(root)}"):
            for number, label in enumerate(texts):
                labels.add(label, f"row {number}")
        if not len(table):
            raise UserError(f"data: no images in {root}")
        first = undecoded[0][image]
        if first is not None and first["bytes"] is None:
            raise UserError(f"data: {root} holds paths of files instead of images; pass the files' folder as data")
        return labels.split(Rows(root, RowNames(_mark(undecoded), len(table)), undecoded), classes, labelled=labelled)


def _files(folder: Path, kind: str) -> dict[str, list[str]]:
    """Group files by split: by the part of the name before the first `-` if a folder holds several, else by folder."""
    folders: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob(f"*.{kind}")):
        if any(is_hidden(part) for part in file.relative_to(folder).parts):
            continue
        folders.setdefault(file.parent, []).append(file)
    found: dict[str, list[str]] = {}
    home: dict[str, Path] = {}
    for parent, files in folders.items():
        prefixes = [file.stem.partition("-")[0] for file in files]
        by_prefix = len(set(prefixes)) > 1 and all("-" in file.stem for file in files)
        by_prefix = by_prefix or parent in (folder, folder / "data")
        for file, prefix in zip(files, prefixes, strict=True):
            split = prefix if by_prefix else parent.name
            if home.setdefault(split, parent) != parent:
                raise UserError(
                    f"data: hf: the split {split!r} is both in {home[split]} and in {parent}; pass one folder as data"
                )
            found.setdefault(split, []).append(str(file))
    return found


def _mark(column: Any) -> str:
    """Identify a table independently of its location: a digest of the bytes of a few images."""
    digest = hashlib.sha256()
    for row in sorted({0, len(column) // 2, len(column) - 1}):
        (value,) = column[row].values()
        digest.update((value and value["bytes"]) or b"")
    return digest.hexdigest()[:16]


def _image_column(table: Any, root: Path) -> str:
    """Find the column of images: the only one declared as such, or one named `image` or `img`."""
    import datasets  # noqa: PLC0415

    declared = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    for name in (*declared[: len(declared) == 1], *_IMAGES):
        if name in table.column_names:
            kind = table.features[name]
            whole = isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)
            if not whole and getattr(kind, "dtype", "") not in ("binary", "large_binary", "string", "large_string"):
                raise UserError(f"data: {root}: column {name!r} holds {kind} instead of image files")
            return str(name)
    raise UserError(f"data: {root} has no column 'image' (it has {', '.join(table.column_names)})")


def _label_column(table: Any, root: Path) -> str:
    """Find the column of labels: one named `label`, `labels` or `cls`, or the only one declared as classes."""
    declared = [name for name, feature in table.features.items() if hasattr(feature, "names")]
    for name in (*_LABELS, *declared[: len(declared) == 1]):
        if name in table.column_names:
            return str(name)
    choice = f"; rename one of {', '.join(declared)} to 'label'" if declared else ""
    raise UserError(f"data: {root} has no column 'label' (it has {', '.join(table.column_names)}){choice}")


def _labels(table: Any, root: Path) -> tuple[list[str], Iterator[str | int | None]]:
    """Return the class names, if the table has them, and the label of each row."""
    column = _label_column(table, root)
    names = [str(name) for name in getattr(table.features[column], "names", ())]  # they need not be strings

    def texts() -> Iterator[str | int | None]:
        for rows in table.select_columns([column]).iter(_AT_ONCE):
            for value in rows[column]:
                if isinstance(value, int) and names and value != UNLABELLED:
                    yield value
                    continue
                try:
                    yield None if value == UNLABELLED else label_text(value)
                except ValueError as error:
                    raise UserError(f"data: {root}: column {column!r} holds {error}") from None

    return names, texts()
