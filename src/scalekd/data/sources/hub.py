"""Hugging Face data sets: from the hub by name, or a local folder of parquet or arrow files."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, overload

from scalekd.data.sources.source import Labelling
from scalekd.data.split import UNLABELLED, Split
from scalekd.errors import UserError, did_you_mean

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "cls")
_AT_ONCE = 10_000
_OTHER_NAMES = {"val": ("validation", "valid")}


class RowNames(Sequence[str]):
    """The names of rows that have none: their numbers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        every = range(self.length)[index]
        return str(every) if isinstance(every, int) else [str(one) for one in every]


@dataclass(frozen=True)
class Rows:
    """Images in a column of a table; see `Store`.

    Attributes:
        root: The data set and its split, for messages.
        names: The rows' numbers.
        column: A `datasets.Dataset` of one column, not decoded.
    """

    root: Path
    names: RowNames
    column: Any

    def locate(self, index: int) -> str:
        return f"{self.root}/{index}"

    def open(self, index: int) -> io.BytesIO:
        (value,) = self.column[index].values()
        content = value and value["bytes"]
        if content is None:  # a path, which might lead anywhere
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
            raise UserError("data: hf: names no data set; write hf:NAME, hf:NAME:CONFIG or hf:FOLDER")

    def has(self, name: str) -> bool:
        return self._own(name) is not None

    def read(self, name: str, *, labelled: bool = True) -> Split:
        own = self._own(name)
        if own is None:
            found = list(self._splits)
            raise UserError(
                f"data: hf:{self.name} has no split {name!r}{did_you_mean(name, found)}; it has "
                f"{', '.join(found[:5])}. Name the splits with train_split and val_split"
            )
        return self._read(self._splits[own], Path(f"hf:{self.name}/{own}"), labelled)

    def _own(self, name: str) -> str | None:
        """The set's own name for a split."""
        return next((each for each in (name, *_OTHER_NAMES.get(name, ())) if each in self._splits), None)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """The tables by split."""
        try:
            os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
            import datasets  # noqa: PLC0415  # an extra
        except ImportError:
            raise UserError("data: hf: needs the datasets library; pip install 'scalekd[hf]'") from None
        try:
            if not sys.stderr.isatty():
                datasets.disable_progress_bars()
            return dict(self._load(datasets))
        except UserError:
            raise
        except Exception as error:  # the library's are of many kinds, and some are plain ones
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"data: hf:{self.name} cannot be loaded: {reason}") from None

    def _load(self, datasets: Any) -> Any:
        folder = Path(self.name)
        if not folder.is_dir():
            if folder.is_absolute() or self.name.startswith("."):
                raise UserError(f"data: hf: no such folder: {folder}")
            hub, _, config = self.name.partition(":")
            return datasets.load_dataset(hub, config or None)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        for kind in ("parquet", "arrow"):  # named, so that nothing else in the folder is looked at
            files: dict[str, list[str]] = {}
            for file in sorted(folder.rglob(f"*.{kind}")):
                inside = file.parent not in (folder, folder / "data")
                files.setdefault(file.parent.name if inside else file.stem.partition("-")[0], []).append(str(file))
            if files:
                return datasets.load_dataset(kind, data_files=files)
        raise UserError(f"data: hf: {folder} holds no parquet or arrow files; name them as train-00000.parquet, say")

    def _read(self, table: Any, root: Path, labelled: bool) -> Split:
        import datasets  # noqa: PLC0415

        image = _image_column(table, root)
        undecoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        classes, texts = _labels(table, root) if labelled else ([], repeat(None, len(table)))
        labels = Labelling()
        for number, label in enumerate(texts):
            labels.add(label, f"row {number}")
        split = labels.split(Rows(root, RowNames(len(table)), undecoded), classes, labelled=labelled)
        first = undecoded[0][image]
        if first is not None and first["bytes"] is None:
            raise UserError(f"data: {root} names files instead of holding images; name their folder as data instead")
        return split


def _image_column(table: Any, root: Path) -> str:
    """The column of images: the only one declared as such, or one called `image`."""
    import datasets  # noqa: PLC0415

    declared = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    for name in (*declared[: len(declared) == 1], *_IMAGES):
        if name in table.column_names:
            return str(name)
    raise UserError(f"data: {root} has no column 'image' (it has {', '.join(table.column_names)})")


def _label_column(table: Any, root: Path) -> str:
    """The column of labels: one called `label`, or the only one of classes."""
    declared = [name for name, feature in table.features.items() if hasattr(feature, "names")]
    for name in (*_LABELS, *declared[: len(declared) == 1]):
        if name in table.column_names:
            return str(name)
    choice = f"; one of {', '.join(declared)} must be renamed to it" if declared else ""
    raise UserError(f"data: {root} has no column 'label' (it has {', '.join(table.column_names)}){choice}")


def _labels(table: Any, root: Path) -> tuple[list[str], Iterator[str | None]]:
    """Class names, where the table has them, and the label of each row."""
    column = _label_column(table, root)
    names = list(getattr(table.features[column], "names", ()))

    def texts() -> Iterator[str | None]:
        for rows in table.select_columns([column]).iter(_AT_ONCE):
            for value in rows[column]:
                if value in (None, UNLABELLED, ""):
                    yield None
                elif isinstance(value, int) and names:
                    yield names[value]
                elif isinstance(value, int | str):
                    yield str(value)
                else:
                    raise UserError(f"data: {root}: column {column!r} holds {type(value).__name__}, no labels")

    return names, texts()
