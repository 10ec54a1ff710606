"""The interface of image sources, and what they share: turning labels into classes, and comparing classes."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scalekd.data.split import UNLABELLED, Split, Store
from scalekd.errors import UserError, did_you_mean

_DIGITS = 19

Label = str | int | tuple[str, ...]  # a name, the index of a class, or several names


class Source(Protocol):
    """Images in named splits; what the key `data` names."""

    def has(self, name: str) -> bool:
        """Whether there is a split of this name."""

    def read(self, name: str, *, labelled: bool = True) -> Split:
        """Read the images of a split, with labels and classes or without both.

        Raises:
            UserError: If there is no such split, or it is invalid.
        """


class Labelling:
    """The labels of a split, collected image by image.

    Attributes:
        missing: Name of the first image without a label.
    """

    def __init__(self) -> None:
        self.missing: str | None = None
        self._numbers: dict[Label, int] = {}
        self._found = array("i")

    def __len__(self) -> int:
        return len(self._found)

    @property
    def names(self) -> set[Label]:
        """The labels that occur."""
        return set(self._numbers)

    def add(self, label: Label | None, image: str) -> None:
        """Record the label of the next image: a text, the index of a known class, several names, or None."""
        if label is None:
            self.missing = self.missing or image
            self._found.append(UNLABELLED)
        else:
            self._found.append(self._numbers.setdefault(label, len(self._numbers)))

    def split_multi(
        self, store: Store, separator: str | None, classes: Sequence[str] = (), *, labelled: bool = True
    ) -> Split:
        """Build the split in which an image has any number of classes.

        Args:
            store: The images.
            separator: Separator of the names in a text label; None for `|`.
            classes: Classes that there are, even if no image has one.
            labelled: Whether the split gets labels.

        Raises:
            UserError: If there are no images, or labels seem to have another separator than `|`.
        """
        if not len(self) or not labelled:
            return self.split(store, labelled=False)
        texts = [label for label in self._numbers if isinstance(label, str)]
        if separator is None and not any("|" in text for text in texts):
            other = next((text for text in texts if ";" in text or "," in text), None)
            if other is not None:
                raise UserError(
                    f"data: {store.root}: the label {other!r} may be several labels; name what separates them with "
                    "label_separator (comma, semicolon, ...), or pass pipe there if it is a single name"
                )
        separator = separator or "|"
        found = [_names(label, separator) for label in self._numbers]
        every = {*classes, *chain.from_iterable(found)}
        names = tuple(sorted(every, key=_order(every)))
        place = {name: index for index, name in enumerate(names)}
        sets = tuple(tuple(sorted(place[name] for name in each)) for each in found)
        return Split(store, np.frombuffer(self._found, np.int32), names, sets=sets)

    def split(self, store: Store, classes: Sequence[str] = (), *, labelled: bool = True) -> Split:
        """Build the split with these labels.

        Args:
            store: The images.
            classes: Class names, if known: a text label is then a name or the index of a name. Otherwise the text
                labels are the class names, sorted; integers by their value.
            labelled: Whether the split gets labels.

        Raises:
            UserError: If there are no images, or an image has no label or a label of no class.
        """
        if not len(self):
            raise UserError(f"data: no images in {store.root}")
        if not labelled:
            return Split(store, np.full(len(self), UNLABELLED, np.int32), ())
        if self.missing is not None:
            raise UserError(f"data: {store.root}: {self.missing} has no label; add one, or set labels to none")
        texts = [label for label in self._numbers if isinstance(label, str)]
        names = tuple(classes) or tuple(sorted(texts, key=_order(texts)))
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(f"data: {store.root} has two classes {twice!r}; class names must differ")
        if wrong := next((name for name in names if not _is_text(name)), None):
            raise UserError(f"data: {store.root} has a class {wrong!r}, which is not valid Unicode; rename it")
        place: dict[Label, int] = {index: index for index in range(len(names))}
        for text, index in _places(store.root, texts, names).items():
            place[text] = index
        unknown = [label for label in self._numbers if label not in place]
        if unknown:
            hint = (
                did_you_mean(str(unknown[0]), names) or f"; there are {len(names)}, from {names[0]!r} to {names[-1]!r}"
            )
            raise UserError(f"data: {store.root} has images of {unknown[0]!r}, which is not one of its classes{hint}")
        numbers = np.array([place[label] for label in self._numbers], np.int32)
        return Split(store, numbers[np.frombuffer(self._found, np.int32)], names)


def _names(label: Label, separator: str) -> set[str]:
    """Return the names in a label, without empty ones and surrounding blanks."""
    parts = label if isinstance(label, tuple) else str(label).split(separator)
    return {part.strip() for part in parts} - {""}


def _places(root: Path, labels: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Map each text label to the class that it means.

    If class names are numbers, the labels are read as all names or all indices, whichever covers every label.

    Raises:
        UserError: If both readings or neither cover every label.
    """
    by_name = {name: index for index, name in enumerate(names)}
    by_index = {str(index): index for index in range(len(names))}
    both = by_name.keys() & by_index.keys()
    clash = next((each for each in labels if by_index.get(each) != by_name.get(each) and each in both), None)
    if clash is None:
        return by_index | by_name
    whole = [reading for reading in (by_name, by_index) if reading.keys() >= set(labels)]
    if len(whole) != 1:
        raise UserError(
            f"data: {root}: the label {clash!r} is the name of one class and the index of another; rename the classes "
            "so that their names are not numbers"
        )
    return whole[0]


def _order(labels: Iterable[str]) -> Callable[[str], int | str]:
    """Return the sort key of class names: as folders are sorted, or by value if all are integers."""
    return int if all(_is_number(label) for label in labels) else str


def _is_number(label: str) -> bool:
    return label.isdecimal() and len(label) < _DIGITS and label == str(int(label))


def with_filled_classes(split: Split) -> Split:
    """Check that a split has at least two classes and an image of each, and return it.

    Raises:
        UserError: If it does not.
    """
    if len(split.classes) < 2:
        has = f"one class, {split.classes[0]!r}" if split.classes else "no classes"
        raise UserError(f"data: {split.root} has {has}; at least two are needed")
    if empty := split.skipped.empty:
        found = split.skipped.described()
        raise UserError(
            f"data: no images in {', '.join(str(split.root / name) for name in empty[:3])}"
            f"{f' ({found})' if found else ''}; add some, or remove the folder"
        )
    return split


def same_classes(training: Split, validation: Split, names: tuple[str, str]) -> Split:
    """Return the validation split with its labels in the order of the training split's classes.

    Args:
        training: The training images.
        validation: The validation images.
        names: The names of the two splits.

    Raises:
        UserError: If the two do not have the same classes (with several labels per image: if the validation images have
            classes that the training images lack).
    """
    if only := class_differences(training, validation, names):
        rule = "every class must be in both" if training.sets is None else "a class must be among the training images"
        named = training.classes + validation.classes
        several = training.sets is None and any(mark in name for name in named for mark in "|;")
        hint = "; if their names are several labels each, add multi_label" if several else ""
        raise UserError(f"data: {training.root}: classes differ: {'; '.join(only)}; {rule}{hint}")
    return in_order(validation, training.classes)


def class_differences(training: Split, validation: Split, names: tuple[str, str]) -> list[str]:
    """Describe the classes that only one of two splits has; empty if there are none. See `same_classes`.

    With several labels per image, a class without any validation image is none of these.
    """
    splits = [(names[0], training, validation), (names[1], validation, training)]
    if training.sets is not None:
        del splits[0]
    extra = {name: sorted(set(have.classes) - set(lack.classes)) for name, have, lack in splits}
    return [
        f"{', '.join(more[:3])}{', ...' if len(more) > 3 else ''} in {name} only"
        for name, more in extra.items()
        if more
    ]


def in_order(split: Split, classes: tuple[str, ...]) -> Split:
    """Return the split with its classes renumbered as in `classes`, which must contain them all."""
    if classes == split.classes:
        return split
    order = np.array([classes.index(name) for name in split.classes], np.int32)
    if split.sets is not None:
        sets = tuple(tuple(sorted(order[list(each)].tolist())) for each in split.sets)
        return replace(split, sets=sets, classes=classes)
    return replace(split, labels=order[split.labels], classes=classes)


def escapes(entry: str) -> bool:
    """Whether a path leaves the folder that it is relative to, or is not a valid path."""
    return not is_file_name(entry) or os.path.isabs(entry) or ".." in Path(entry).parts


def is_file_name(entry: str) -> bool:
    """Whether a file or folder could have this path."""
    return bool(entry) and _is_text(entry) and "\0" not in entry


def _is_text(name: str) -> bool:
    """Whether a text can be encoded as a file name; JSON can contain unpaired surrogates, which cannot."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def label_text(value: Any) -> str | None:
    """Convert a label or a split's name from JSON or a table to text; None if it is empty.

    Whole numbers are written without a decimal point (pandas turns 1 into 1.0 if another row is empty), booleans as
    True and False.

    Raises:
        ValueError: If it is neither text, a whole number nor a boolean; the message gives the value.
    """
    if value is None or value == "" or value != value:  # noqa: PLR0124  # NaN is pandas' missing value
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int):
        return str(value)
    raise ValueError(f"{value!r}, neither text, a whole number nor true or false")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):  # ambiguous
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has two entries {twice!r}")
    return entries


parse_json = json.JSONDecoder(object_pairs_hook=_once).decode
"""Parse JSON text; raises ValueError (also if a key is repeated) or RecursionError."""
