"""Writes pictures and histograms of a pair in training to TensorBoard.

This module decides when and how they are written. `report/live.py` computes them; the caller passes it in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from PIL.Image import Image

from scalekd.data import Split, seeded
from scalekd.engine.modes import evaluating
from scalekd.errors import first_line
from scalekd.methods.base import Method
from scalekd.recipes import Recipe
from scalekd.runs.logs import TensorBoardEvents, shown_values

T = TypeVar("T")


class Shown(NamedTuple):
    """Pictures and histograms of one step, by their names in TensorBoard.

    Attributes:
        images: Pictures.
        histograms: Values whose distribution is shown.
    """

    images: dict[str, Image]
    histograms: dict[str, NDArray[Any]]


class Visualise(Protocol):
    """Computes pictures and histograms of a pair in its current state."""

    def prepare(self) -> None:
        """Read the images and run the teacher on them, if that is not done yet."""
        ...

    def __call__(self) -> Shown:
        """Compute the pictures and histograms; prepares first if that is not done yet."""
        ...


Live = Callable[[Recipe, Method, Split], Visualise | None]
"""Creates a `Visualise` from a run's settings, pair and validation images; None if there is nothing to show."""


class Watcher:
    """Draws a pair in training without changing it: in eval mode, without gradients, with a separate random state.

    Args:
        visualise: Computes the pictures and histograms.
        method: The pair.
        autocast: Returns the autocast context that validation runs in.
        say: Called with a line for the user.
    """

    def __init__(
        self, visualise: Visualise, method: Method, autocast: Callable[[], torch.autocast], say: Callable[[str], object]
    ) -> None:
        self._visualise: Visualise | None = visualise
        self._method, self._autocast, self._say = method, autocast, say

    def prepare(self) -> None:
        """Run the teacher now, for a run that will free the teacher's weights."""
        self._attempt(lambda visualise: visualise.prepare())

    def watch(self, events: TensorBoardEvents, step: int) -> None:
        """Write pictures and histograms of this step to `events`; after the first failure, no more are drawn.

        An error in writing to `events` is not caught: it ends the run like any other log that cannot be written.
        """
        with seeded(step):
            shown = self._attempt(lambda visualise: shown_values(*visualise()))
        if shown is not None:
            events.log(shown, step)

    def _attempt(self, work: Callable[[Visualise], T]) -> T | None:
        """Return the result of `work`; None after a failure, which is reported once."""
        if self._visualise is None:
            return None
        try:
            with evaluating(self._method), torch.no_grad(), self._autocast():
                return work(self._visualise)
        except Exception as error:  # pictures must never end a run, not even if memory runs out
            self._visualise = None
            self._say(f"warning: pictures for TensorBoard are left out from now on: {first_line(error)}")
            return None
