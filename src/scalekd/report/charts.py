"""Computes the geometry of line charts and heat maps for inline SVG.

The templates draw them; the page's script adds the values shown when hovering. Knows nothing about runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from scalekd.report.series import Points

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34  # LEFT fits "0.00025" in the larger font of narrow pages
COLOURS = 8  # colours in the style sheet; further curves reuse them dashed
_MARKED = 30  # curves with at most this many points get a dot at each


class Series(NamedTuple):
    """One curve of a chart.

    Attributes:
        name: Name in the legend.
        points: Pairs of x and y.
        colour: Index of the colour in the style sheet. Default: the curve's index in the chart.
    """

    name: str
    points: Points
    colour: int | None = None


class Tick(NamedTuple):
    """A grid line: its position in pixels and its label."""

    at: float
    text: str


class Drawn(NamedTuple):
    """A curve ready to be drawn: its SVG path, and the dots at its points if there are few."""

    name: str
    colour: int
    dashed: bool
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: Title.
        x: Name of the horizontal axis.
        series: The curves; those without points are left out.
        note: A sentence that explains how the values are computed.
        from_zero: Whether the vertical axis starts at 0.
        logarithmic: Whether the vertical axis is logarithmic.
        level: Name and value of a horizontal reference line, if any.
    """

    title: str
    x: str
    series: Sequence[Series]
    note: str = ""
    from_zero: bool = False
    logarithmic: bool = False
    level: tuple[str, float] | None = None
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[int] = LEFT
    right: ClassVar[int] = WIDTH - RIGHT
    top: ClassVar[int] = TOP
    bottom: ClassVar[int] = HEIGHT - BOTTOM

    @property
    def shown(self) -> list[Series]:
        """The curves that have points."""
        return [series for series in self.series if series.points]

    @property
    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Ranges of x and y; of log10(y) if the vertical axis is logarithmic."""
        xs = [x for series in self.shown for x, _ in series.points]
        ys = [self._scaled(y) for series in self.shown for _, y in series.points]
        ys += [self._scaled(self.level[1])] if self.level else []
        ys += [0.0] if self.from_zero else []
        # A single x value, as after one epoch, is drawn on an axis from 0.
        across = (0.0, xs[0]) if min(xs) == max(xs) > 0 else _widened(min(xs), max(xs), 0)
        return across, _widened(min(ys), max(ys), 0 if self.from_zero else 0.04)

    @property
    def has_legend(self) -> bool:
        """Whether to draw a legend: for several curves, and for runs, whose colours are the same in all charts."""
        return len(self.shown) > 1 or self.shown[0].colour is not None

    def _scaled(self, y: float) -> float:
        return math.log10(max(y, 1e-12)) if self.logarithmic else y

    def _place(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.ranges
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y1 - self._scaled(y)) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    @property
    def drawn(self) -> list[Drawn]:
        """The curves with their SVG paths."""
        drawn = []
        for number, series in enumerate(self.shown):
            places = [self._place(*point) for point in series.points]
            colour = number if series.colour is None else series.colour
            path = " ".join(f"{x},{y}" for x, y in places)
            dots = places if len(places) <= _MARKED else []
            drawn.append(Drawn(series.name, colour % COLOURS, colour >= COLOURS, path, dots))
        return drawn

    @property
    def level_at(self) -> float | None:
        """Vertical position of the reference line; None if there is no level."""
        return None if self.level is None else self._place(self.ranges[0][0], self.level[1])[1]

    @property
    def x_ticks(self) -> list[Tick]:
        """Ticks of the horizontal axis."""
        (x0, x1), (y0, _) = self.ranges
        y = 10**y0 if self.logarithmic else y0
        return [Tick(self._place(x, y)[0], short(x)) for x in ticks(x0, x1)]

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks of the vertical axis."""
        (x0, _), (y0, y1) = self.ranges
        values = ticks(y0, y1)
        if self.logarithmic:
            powers = range(math.floor(y0), math.ceil(y1) + 1)
            factors = (1, 2, 5) if y1 - y0 < 2 else (1,)
            values = [factor * 10.0**power for power in powers for factor in factors]
            values = [value for value in values if y0 <= math.log10(value) <= y1]
        return [Tick(self._place(x0, y)[1], short(y)) for y in values]

    @property
    def data(self) -> dict[str, Any]:
        """Data for the page's script: names, and each point as x and y in pixels followed by their values as text."""
        return {
            "x": self.x,
            "series": [
                {
                    "name": series.name,
                    "colour": drawn.colour,
                    "points": [[*self._place(x, y), short(x, 6), short(y, 4)] for x, y in series.points],
                }
                for series, drawn in zip(self.shown, self.drawn, strict=True)
            ],
        }


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Widen a range by `share` of its length on both sides; an empty range gets the length 1."""
    if low == high:
        return low - 0.5, high + 0.5
    room = share * (high - low)
    return low - room, high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return about `about` round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float, digits: int = 3) -> str:
    """Format a number in few characters: 12k, 0.05, 1e-06."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:.{max(digits, 4)}g}"


class Cell(NamedTuple):
    """A square of a heat map: column, row, strength between 0 and 1, and the text shown when hovering."""

    x: int
    y: int
    strength: float
    text: str
