"""Resolve the paths in a list, relative to the list's folder or to the working folder, with either kind of slash."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from scalekd.errors import UserError


class _Base:
    """A folder that paths are relative to.

    Each folder in it is listed only once, so that checking a million paths does not take a system call for each.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, set[str]] = {}
        self.unlisted: dict[str, OSError] = {}

    def find(self, path: str) -> str | None:
        """Return the path of an existing file: as written, or else with forward slashes and without outer blanks.

        None if neither exists.
        """
        return next((written for written in (path, _tidy(path)) if self._has(written)), None)

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; empty if it cannot be listed."""
        if folder not in self._listed:
            self._listed[folder] = set()
            try:
                self._listed[folder] = set(os.listdir(os.path.join(self.root, folder)))
            except OSError as error:
                self.unlisted[folder] = error
        return self._listed[folder]

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        # The second check finds files on file systems that ignore case.
        return name in self.names(folder) or os.path.exists(os.path.join(self.root, path))


def place(file: Path, paths: Sequence[str], lines: Sequence[int]) -> tuple[Path, list[str]]:
    """Return the folder that the list's paths are relative to, and the paths of its images relative to it.

    Args:
        file: The list.
        paths: The paths in it.
        lines: The line number of each path.

    Raises:
        UserError: If none of the files exists, or the folder of one does not.
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
            raise UserError(f"data: {file}: line {line}: {path!r} does not exist ({reason}: {base.root / folder})")
    return base.root, [os.path.normpath(there or _tidy(path)) for path, there in zip(paths, found, strict=True)]


def _tidy(path: str) -> str:
    return path.strip(" \t").replace("\\", "/")


def _all_missing(bases: Sequence[_Base], paths: Sequence[str], lines: Sequence[int]) -> str:
    """Describe that no file of a list exists, with the likely reason judged by its first line."""
    path, name = paths[0], os.path.basename(_tidy(paths[0]))
    places = " or ".join(str(base.root) for base in bases)
    where = "" if os.path.isabs(path) else f" in {places}"
    message = f"none of its {len(paths):,} files exists; line {lines[0]} names {path!r}, which is not{where}"
    if "://" in path:
        return f"{message}: it is a URL, but lists must name files; download them"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        return f"{message}: it is a Windows path; make the paths relative to the list's folder"
    for base in bases:
        siblings = base.names(os.path.dirname(_tidy(path)))
        if longer := sorted(each for each in siblings if name and each.startswith(f"{name}.")):
            return f"{message}; {longer[0]!r} is: write the paths with their endings"
        inside = next((each for each in sorted(base.names("")) if os.path.isfile(base.root / each / _tidy(path))), None)
        if inside is not None:
            return f"{message}; it is in {base.root / inside}: make the paths relative to the list's folder"
    return message
