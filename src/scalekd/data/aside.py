"""What is in a split's place and not among its images: counted while they are listed, so that it can be told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalekd.data.endings import HEIF, NEEDS_HEIF, ending, has_heif
from scalekd.errors import printable

_KINDS_SHOWN = 6
NO_ENDING = "without an ending"
Counts = dict[str, tuple[int, str]]  # by kind: how many, and the first of their paths


@dataclass
class Aside:
    """What a listing passes over.

    Attributes:
        left_out: Files that are no images by the endings of their names, by ending.
        hidden: Hidden files and folders, and those that systems leave behind, by what they are.
        empty: Folders of classes that hold no image.
    """

    left_out: Counts = field(default_factory=dict)
    hidden: Counts = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def leave_out(self, path: str, kind: str = "") -> None:
        """Count a file that is no image, by its ending if no other kind is given."""
        _count(self.left_out, kind or ending(os.path.basename(path)) or NO_ENDING, path)

    def hide(self, path: str, *, folder: bool) -> None:
        """Count a file or folder that is nobody's picture."""
        name = os.path.basename(path)
        companion = "._* files" if name.startswith("._") else f"{name} files"
        _count(self.hidden, f"{name} folders" if folder else companion, path)

    def joined(self, other: Aside) -> Aside:
        """What is beside the images of two listings."""
        both = Aside(dict(self.left_out), dict(self.hidden), self.empty + other.empty)
        for mine, theirs in ((both.left_out, other.left_out), (both.hidden, other.hidden)):
            for kind, (number, first) in theirs.items():
                _count(mine, kind, first, number)
        return both

    def described(self) -> str:
        """The files left out, as a line; empty where there are none."""
        if not self.left_out:
            return ""
        line = f"{_listed(self.left_out, 'file')} left out, for example {printable(_first(self.left_out))}"
        unread = [kind for kind in HEIF if kind in self.left_out and not has_heif()]
        return f"{line}; {' and '.join(unread)} {NEEDS_HEIF}" if unread else line

    def described_hidden(self) -> str:
        """The hidden files and folders, as a line; empty where there are none."""
        if not self.hidden:
            return ""
        return f"{_listed(self.hidden, 'hidden entry')} not looked at, for example {printable(_first(self.hidden))}"

    def dump(self) -> str:
        """As text for an index."""
        return json.dumps([self.left_out, self.hidden, self.empty])

    @staticmethod
    def load(text: str) -> Aside:
        """What `dump` has written."""
        left_out, hidden, empty = json.loads(text)
        counts: list[Counts] = [{kind: (each[0], each[1]) for kind, each in c.items()} for c in (left_out, hidden)]
        return Aside(counts[0], counts[1], empty)

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        counts = {"left_out": self.left_out, "hidden": self.hidden}
        return {
            name: {kind: {"count": number, "example": first} for kind, (number, first) in kinds.items()}
            for name, kinds in counts.items()
        } | {"empty": self.empty}


def left_out(asides: Mapping[str, Aside]) -> list[str]:
    """A line for each split of which files are left out, given what is beside its images."""
    return [f"left out  {name}: {line}" for name, aside in asides.items() if (line := aside.described())]


def _count(counts: Counts, kind: str, path: str, number: int = 1) -> None:
    before, first = counts.get(kind, (0, path))
    counts[kind] = (before + number, min(first, path))


def _first(counts: Counts) -> str:
    """An example of what there is most of."""
    return max(counts.values(), key=lambda value: value[0])[1]


def _listed(counts: Counts, what: str) -> str:
    """As `12 files (10 .avif, 2 .txt)`."""
    total = sum(number for number, _ in counts.values())
    most = sorted(counts.items(), key=lambda item: -item[1][0])
    parts = [f"{number} {printable(kind)}" for kind, (number, _) in most[:_KINDS_SHOWN]]
    rest = sum(number for _, (number, _) in most[_KINDS_SHOWN:])
    many = what if total == 1 else {"file": "files", "hidden entry": "hidden entries"}[what]
    return f"{total} {many} ({', '.join(parts + ([f'{rest} of other kinds'] if rest else []))})"
