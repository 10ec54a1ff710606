"""Count the files that a split's listing skips (other file types, hidden files), so that they can be reported."""

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
Counts = dict[str, tuple[int, str]]  # by kind: the number of files, and the first of their paths in sorted order


@dataclass
class SkippedFiles:
    """Files and folders that a listing skips.

    Attributes:
        left_out: Files whose ending is not that of an image, by ending.
        hidden: Hidden files and folders, and those that operating systems leave behind, by kind.
        empty: Class folders that hold no image.
    """

    left_out: Counts = field(default_factory=dict)
    hidden: Counts = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def leave_out(self, path: str, kind: str = "") -> None:
        """Count a file that is not an image, under `kind` or by default under its ending."""
        _count(self.left_out, kind or ending(os.path.basename(path)) or NO_ENDING, path)

    def hide(self, path: str, *, folder: bool) -> None:
        """Count a hidden file or folder."""
        name = os.path.basename(path)
        companion = "._* files" if name.startswith("._") else f"{name} files"
        _count(self.hidden, f"{name} folders" if folder else companion, path)

    def joined(self, other: SkippedFiles) -> SkippedFiles:
        """Return the counts of this listing and of another one, added up."""
        both = SkippedFiles(dict(self.left_out), dict(self.hidden), self.empty + other.empty)
        for mine, theirs in ((both.left_out, other.left_out), (both.hidden, other.hidden)):
            for kind, (number, first) in theirs.items():
                _count(mine, kind, first, number)
        return both

    def described(self) -> str:
        """Describe the files left out in one line; empty if there are none."""
        if not self.left_out:
            return ""
        line = f"{_listed(self.left_out, 'file')} left out, for example {printable(_first(self.left_out))}"
        unread = [kind for kind in HEIF if kind in self.left_out and not has_heif()]
        return f"{line}; {' and '.join(unread)} {NEEDS_HEIF}" if unread else line

    def described_hidden(self) -> str:
        """Describe the hidden files and folders in one line; empty if there are none."""
        if not self.hidden:
            return ""
        return f"{_listed(self.hidden, 'hidden entry')} skipped, for example {printable(_first(self.hidden))}"

    def dump(self) -> str:
        """Serialise to text, as an index stores it."""
        return json.dumps([self.left_out, self.hidden, self.empty])

    @staticmethod
    def load(text: str) -> SkippedFiles:
        """Restore what `dump` wrote."""
        left_out, hidden, empty = json.loads(text)
        counts: list[Counts] = [{kind: (each[0], each[1]) for kind, each in c.items()} for c in (left_out, hidden)]
        return SkippedFiles(counts[0], counts[1], empty)

    def plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"left_out": self.left_out, "hidden": self.hidden}
        return {
            name: {kind: {"count": number, "example": first} for kind, (number, first) in kinds.items()}
            for name, kinds in counts.items()
        } | {"empty": self.empty}


def left_out(skipped_files: Mapping[str, SkippedFiles]) -> list[str]:
    """Return one line for each split that has files left out, given the skipped files of each split by name."""
    return [f"left out  {name}: {line}" for name, skipped in skipped_files.items() if (line := skipped.described())]


def _count(counts: Counts, kind: str, path: str, number: int = 1) -> None:
    before, first = counts.get(kind, (0, path))
    counts[kind] = (before + number, min(first, path))


def _first(counts: Counts) -> str:
    """Return an example path of the most frequent kind."""
    return max(counts.values(), key=lambda value: value[0])[1]


def _listed(counts: Counts, what: str) -> str:
    """Format counts as `12 files (10 .avif, 2 .txt)`."""
    total = sum(number for number, _ in counts.values())
    most = sorted(counts.items(), key=lambda item: -item[1][0])
    parts = [f"{number} {printable(kind)}" for kind, (number, _) in most[:_KINDS_SHOWN]]
    rest = sum(number for _, (number, _) in most[_KINDS_SHOWN:])
    many = what if total == 1 else {"file": "files", "hidden entry": "hidden entries"}[what]
    return f"{total} {many} ({', '.join(parts + ([f'{rest} of other kinds'] if rest else []))})"
