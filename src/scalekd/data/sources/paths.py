"""Where the images are that a list names: relative to the list or to the working folder, with either slash."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from scalekd.errors import UserError


class _Base:
    """A folder that paths are relative to; each folder in it is listed once, so that a million paths are no calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, set[str]] = {}
        self.unlisted: dict[str, OSError] = {}

    def find(self, path: str) -> str | None:
        """The path of a file that is there: as it is written, or with slashes for backslashes and no blanks around."""
        return next((written for written in (path, _tidy(path)) if self._has(written)), None)

    def names(self, folder: str) -> set[str]:
        """What is in a folder; nothing where it cannot be listed."""
        if folder not in self._listed:
            self._listed[folder] = set()
            try:
                self._listed[folder] = set(os.listdir(os.path.join(self.root, folder)))
            except OSError as error:
                self.unlisted[folder] = error
        return self._listed[folder]

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder) or os.path.exists(os.path.join(self.root, path))  # the case may not count


def place(file: Path, paths: Sequence[str], lines: Sequence[int]) -> tuple[Path, list[str]]:
    """The folder that the list's paths are relative to, and the paths of its images from there.

    Args:
        file: The list.
        paths: The paths in it.
        lines: The line of each.

    Raises:
        UserError: If none of the files is there, or a folder of one is not.
    """
    bases = [_Base(file.parent)]
    if not file.parent.samefile(Path.cwd()):
        bases.append(_Base(Path.cwd()))
    for base in bases:
        found = [base.find(path) for path in paths]
        if any(found):
            break
    else:
        if paths:
            raise UserError(f"data: {file}: {_all_missing(bases, paths, lines)}")
        return file.parent, []
    for line, path, there in zip(lines, paths, found, strict=True):
        folder = os.path.dirname(_tidy(path))
        if there is None and folder in base.unlisted:
            reason = base.unlisted[folder].strerror
            raise UserError(f"data: {file}: line {line}: {path!r} is not there ({reason}: {base.root / folder})")
    return base.root, [os.path.normpath(there or _tidy(path)) for path, there in zip(paths, found, strict=True)]


def _tidy(path: str) -> str:
    return path.strip(" \t").replace("\\", "/")


def _all_missing(bases: Sequence[_Base], paths: Sequence[str], lines: Sequence[int]) -> str:
    """That no file of a list is there, with what its first line tells of the reason."""
    path, name = paths[0], os.path.basename(_tidy(paths[0]))
    places = " or ".join(str(base.root) for base in bases)
    where = "" if os.path.isabs(path) else f" in {places}"
    message = f"none of its {len(paths):,} files is there; line {lines[0]} names {path!r}, which is not{where}"
    if "://" in path:
        return f"{message}: it is a URL, and lists name files; download them"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        return f"{message}: it is a path of a Windows machine; make the paths relative to the list's folder"
    for base in bases:
        siblings = base.names(os.path.dirname(_tidy(path)))
        if longer := sorted(each for each in siblings if name and each.startswith(f"{name}.")):
            return f"{message}; {longer[0]!r} is: give the paths with their endings"
        inside = next((each for each in sorted(base.names("")) if os.path.isfile(base.root / each / _tidy(path))), None)
        if inside is not None:
            return f"{message}; it is in {base.root / inside}: the paths must begin at the list's folder"
    return message
