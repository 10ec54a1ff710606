"""What a command prints to standard error while it works: lines, and progress bars if it is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

T_co = TypeVar("T_co", covariant=True)


class SizedIterable(Sized, Iterable[T_co], Protocol[T_co]):
    """An iterable with a known length, such as a DataLoader."""


def plain_lines(console: Console | None = None) -> Callable[[str], None]:
    """A function that prints a line unchanged: without line breaks, colours or markup (brackets in file names)."""
    console = console or Console(stderr=True)
    return partial(console.print, highlight=False, soft_wrap=True, markup=False)


def watched(batches: SizedIterable[T_co], what: str, console: Console | None = None) -> Iterable[T_co]:
    """Iterate over `batches` with a progress bar on standard error; without a terminal no bar is shown."""
    console = console or Console(stderr=True)
    return track(batches, what, total=len(batches), console=console, transient=True, disable=not console.is_terminal)


def image_bar(console: Console) -> Progress:
    """Create a progress bar that counts images; its tasks have a field `rate` in images per second.

    It is drawn only if the console is a terminal.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} img/s"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class RateMeter:
    """Counts images and their rate from construction on, and shows both in a bar.

    Args:
        bar: A bar from `image_bar`.
        name: The description in the bar.
        total: Number of images, if known.
    """

    def __init__(self, bar: Progress, name: str, total: int | None = None) -> None:
        self.images, self._started = 0, time.perf_counter()
        self._bar, self._task = bar, bar.add_task(name, total=total, rate=0.0)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / (time.perf_counter() - self._started)

    def add(self, images: int, missing: int | None = None) -> None:
        """Count images; `missing` is how many remain if the total is not known."""
        self.images += images
        total = None if missing is None else self.images + missing
        self._bar.update(self._task, completed=self.images, total=total, rate=self.rate)


def working(what: str, console: Console | None = None) -> AbstractContextManager[object]:
    """Show a status line inside the context, for work of unknown duration; without a terminal nothing is shown."""
    console = console or Console(stderr=True)
    return console.status(escape(what)) if console.is_terminal else nullcontext()
