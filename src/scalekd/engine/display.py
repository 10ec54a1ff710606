"""Show training progress: a progress bar, and one line per validation or interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from scalekd.progress import plain_lines

T = TypeVar("T")


class Display:
    """A progress bar with images per second, data wait and loss terms; also measures speed between two lines.

    Data wait is the fraction of time since the last line that training has spent waiting for batches.

    Args:
        console: Where to print; if it is not a terminal, only the lines are printed.
        batch: Global batch size.
        steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps per epoch.
    """

    def __init__(self, console: Console, *, batch: int, steps: int, steps_per_epoch: int) -> None:
        self._console, self._batch = console, batch
        self._steps_per_epoch, self._epochs = steps_per_epoch, -(-steps // steps_per_epoch)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}", table_column=Column(no_wrap=True)),
            BarColumn(20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            # The only column that shrinks in a narrow terminal.
            TextColumn(
                "{task.fields[speed]}  {task.fields[terms]}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, epoch=1, epochs=self._epochs, speed="", terms="")
        self._started = self._waited = 0.0
        self._since_step = 0
        self._last_speed = ""

    def start(self, step: int) -> None:
        """Show the bar with `step` steps done."""
        self._bar.update(self._task, completed=step)
        self._bar.start()
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._started, self._since_step, self._waited = time.perf_counter(), step, 0.0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and count the time spent waiting for each as data wait."""
        iterator = iter(batches)
        while True:
            requested = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - requested
            if batch is None:
                return
            yield batch

    def advance(self, step: int, terms: Callable[[], str]) -> None:
        """Advance the bar after a step; `terms` formats the loss and is called only if the bar is drawn."""
        if not self._bar.disable and step % 5 == 0:
            epoch = min(step // self._steps_per_epoch + 1, self._epochs)
            speed = _in_words(self._speed(step))
            self._bar.update(self._task, completed=step, epoch=epoch, speed=speed, terms=terms())

    def lap(self, step: int) -> dict[str, float]:
        """Return images per second and data wait since the last line, and keep them for the next line."""
        speed = self._speed(step)
        self._last_speed = _in_words(speed)
        return speed

    def _speed(self, step: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        return {
            "images_per_second": (step - self._since_step) * self._batch / elapsed,
            "data_wait": self._waited / elapsed,
        }

    def line(self, step: int, parts: Iterable[str]) -> None:
        """Print a line about the steps since the last line, and restart the timing."""
        epoch = f"epoch {step // self._steps_per_epoch}/{self._epochs}"
        plain_lines(self._console)("  ".join([epoch, *parts, self._last_speed]))
        self._restart(step)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def _in_words(speed: Mapping[str, Any]) -> str:
    return f"{speed['images_per_second']:.0f} img/s  data wait {speed['data_wait']:.0%}"
