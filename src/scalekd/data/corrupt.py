"""Count the unreadable images of a run, and stop it above a limit (`max_corrupt`)."""

from __future__ import annotations

from collections.abc import Callable

from scalekd.errors import UserError, printable


class CorruptImages:
    """Counts the unreadable files of a run and raises an error above a limit.

    Args:
        limit: Number of unreadable files that is tolerated.
        report: Called with a line for each new unreadable file.
    """

    def __init__(self, limit: int, report: Callable[[str], object] | None = None) -> None:
        self.limit, self.report = limit, report
        self.paths: set[str] = set()

    def add(self, files: dict[str, str]) -> None:
        """Record unreadable files, given with the reason for each or an empty string.

        Raises:
            UserError: If new files exceed the limit; names the last one.
        """
        described = {path: f"{path} ({reason})" if reason else path for path, reason in files.items()}
        new = sorted(files.keys() - self.paths)
        for path in new:
            if self.report is not None:
                self.report(f"warning: left out, cannot be read: {printable(described[path])}")
        if new and len(self.paths) + len(new) > self.limit:  # not recorded, so that a resumed run stops at them again
            raise UserError(
                f"data: {len(self.paths) + len(new)} unreadable image(s), the last {described[new[-1]]}; "
                f"fix or remove them, or raise max_corrupt (now {self.limit})"
            )
        self.paths.update(new)
