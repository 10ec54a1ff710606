"""Line charts and heat maps as geometry for inline SVG; the page's script adds what hovering shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from scalekd.report.series import Points

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34  # LEFT: 0.00025 in the font of narrow pages
COLOURS = 8  # of the style sheet; more curves are dashed
_MARKED = 30  # curves of at most so many points have them marked


class Series(NamedTuple):
    """A curve.

    Attributes:
        name: In the legend.
        points: Its x and y.
        colour: Which of the style sheet's colours; by default its place among the curves.
    """

    name: str
    points: Points
    colour: int | None = None


class Tick(NamedTuple):
    """A line of the grid: where it is and what is written there."""

    at: float
    text: str


class Drawn(NamedTuple):
    """A curve as it is drawn."""

    name: str
    colour: int
    dashed: bool
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: What it shows.
        x: Name of the horizontal axis.
        series: The curves; those without points are left out.
        note: How it comes about, in a sentence.
        from_zero: Whether the vertical axis begins at 0.
        logarithmic: Whether the vertical axis is logarithmic.
        level: A level to compare with, with its name.
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
        """Ranges of x and y (of its decimal logarithm, where that axis is logarithmic)."""
        xs = [x for series in self.shown for x, _ in series.points]
        ys = [self._scaled(y) for series in self.shown for _, y in series.points]
        ys += [self._scaled(self.level[1])] if self.level else []
        ys += [0.0] if self.from_zero else []
        across = (0.0, xs[0]) if min(xs) == max(xs) > 0 else _widened(min(xs), max(xs), 0)  # one epoch, say
        return across, _widened(min(ys), max(ys), 0 if self.from_zero else 0.04)

    @property
    def has_legend(self) -> bool:
        """Whether the curves need their names: several, or those of runs, which go by colour everywhere."""
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
        """The curves as SVG draws them."""
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
        """Where the level is drawn."""
        return None if self.level is None else self._place(self.ranges[0][0], self.level[1])[1]

    @property
    def x_ticks(self) -> list[Tick]:
        """Vertical lines."""
        (x0, x1), (y0, _) = self.ranges
        y = 10**y0 if self.logarithmic else y0
        return [Tick(self._place(x, y)[0], short(x)) for x in ticks(x0, x1)]

    @property
    def y_ticks(self) -> list[Tick]:
        """Horizontal lines."""
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
        """What the script reads: names, points in the chart's and in their own units."""
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
    """A range that holds both ends, some room beside them, and is not empty."""
    if low == high:
        return low - 0.5, high + 0.5
    room = share * (high - low)
    return low - room, high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float, digits: int = 3) -> str:
    """A number in few characters: 12k, 0.05, 1e-06."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:.{max(digits, 4)}g}"


class Cell(NamedTuple):
    """A square of a heat map: place, strength between 0 and 1, and what hovering says."""

    x: int
    y: int
    strength: float
    text: str
