"""What a run shows of its models while it trains, beside its figures; others make the pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from PIL.Image import Image

from scalekd.data import Split, seeded
from scalekd.engine.modes import evaluating
from scalekd.errors import first_line
from scalekd.method import Method
from scalekd.recipes import Recipe
from scalekd.runs.logs import TensorBoardEvents, shown_values


class Shown(NamedTuple):
    """What is shown of a step, each by its name in TensorBoard.

    Attributes:
        images: Pictures.
        histograms: Values whose distribution is shown.
    """

    images: dict[str, Image]
    histograms: dict[str, NDArray[Any]]


Look = Callable[[], Shown]
# Of a run's settings, pair and validation images: what looks at the pair as it then is; None where it shows nothing.
Live = Callable[[Recipe, Method, Split], Look | None]


class Watcher:
    """Looks at a pair in training without a trace in it: in eval mode, without gradients or random draws.

    Args:
        look: What looks.
        method: The pair.
        autocast: What validation runs in.
        say: Called with a line for the user.
    """

    def __init__(
        self, look: Look, method: Method, autocast: Callable[[], torch.autocast], say: Callable[[str], object]
    ) -> None:
        self._look: Look | None = look
        self._method, self._autocast, self._say = method, autocast, say

    def watch(self, events: TensorBoardEvents, step: int) -> None:
        """Write what there is to see to `events`; what fails once is left out from then on.

        A log that cannot be written ends the run as ever.
        """
        if self._look is None:
            return
        try:
            with evaluating(self._method), seeded(step), torch.no_grad(), self._autocast():
                shown = shown_values(*self._look())
        except Exception as error:  # of whatever kind, memory that is short among them: no picture is worth a run
            self._look = None
            self._say(f"warning: pictures for TensorBoard are left out from now on: {first_line(error)}")
            return
        events.log(shown, step)
