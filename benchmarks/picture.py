"""Draws the picture of growth: time and memory of a step against its FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which every eye tells apart, and markers for print without colour.
LOOKS = {
    "batch": ("#0072B2", "o"),
    "resolution": ("#D55E00", "s"),
    "teacher": ("#009E73", "^"),
    "student": ("#AA4499", "D"),
}
PANELS = {
    "time": ("step_seconds", 1, "time of a step, s"),
    "memory": ("peak_mib", 1024, "peak memory of a step, GiB"),
}
BRIEF = {
    "swin_tiny": "Swin-T",
    "swin_small": "Swin-S",
    "swin_base": "Swin-B",
    "swin_large": "Swin-L",
    "vit_tiny": "ViT-Ti",
    "vit_small": "ViT-S",
    "vit_base": "ViT-B",
}
# Where a label may stand, in points from its marker, with its alignment; the first that is free is taken.
PLACES = tuple(
    (x, y, side)
    for y in (0, -9, 9, -18, 18)
    for x, side in ((7, "left"), (-7, "right"), (0, "center"))
    if y or side != "center"
)

Points = Sequence[Mapping[str, Any]]


def short(axis: str, value: Any) -> str:
    """Return the label of a point in the picture."""
    unit = {"batch": " images", "resolution": " px"}.get(axis, "")
    name = str(value).split("_patch", maxsplit=1)[0]
    return BRIEF.get(name, name) + unit


def draw(file: Path, along: Mapping[str, Points], fits: Mapping[str, Any], title: str) -> None:
    """Write the picture.

    Args:
        file: The file to write; its suffix determines the format.
        along: The measured points of each axis, in its order.
        fits: The exponents of each axis.
        title: What was measured, and on which machine.
    """
    settings: Any = {"font.size": 9, "svg.hashsalt": "growth", "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(10, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2)
        labels = [draw_panel(*both, along, fits) for both in zip(panels, PANELS, strict=True)]
        figure.suptitle(title, fontsize=10)
        figure.draw_without_rendering()  # so that sizes are known
        for panel, names in zip(panels, labels, strict=True):
            place(panel, names)
        figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)


def draw_panel(panel: Axes, quantity: str, along: Mapping[str, Points], fits: Mapping[str, Any]) -> list[Annotation]:
    """Draw one line per axis, and a dashed line that grows like the FLOPs; return the labels at the lines' ends."""
    key, unit, label = PANELS[quantity]
    labels = []
    for axis, points in along.items():
        color, marker = LOOKS[axis]
        ends = [(p["flops"] / 1e12, p[key] / unit) for p in points]
        fit = fits[axis][quantity]["flops"]
        name = f"{axis}: {fit['exponent']:.2f} ± {fit['spread']:.2f}"
        panel.plot(*zip(*ends, strict=True), color=color, marker=marker, markersize=5, linewidth=1.5, label=name)
        for index in (0, -1):
            text = short(axis, points[index][axis])
            labels.append(panel.annotate(text, ends[index], (0, 0), textcoords="offset points", color=color, size=8))
    panel.set(xscale="log", yscale="log", xlabel="FLOPs of a step, TFLOP", ylabel=label)
    panel.margins(x=0.15, y=0.1)
    panel.autoscale_view()
    panel.autoscale(False)
    middle = shared(along)
    sides = [side * middle["flops"] / 1e12 for side in (0.01, 100)]
    guide = [side * middle[key] / unit for side in (0.01, 100)]
    panel.plot(sides, guide, color="0.5", linestyle="--", linewidth=1, zorder=1, label="exponent 1, as the FLOPs")
    for scale in (panel.xaxis, panel.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_locator(NullLocator())
    panel.grid(alpha=0.3, linewidth=0.5)
    panel.legend(frameon=False, loc="upper left", title="exponent against FLOPs", alignment="left", fontsize=8)
    return labels


def shared(along: Mapping[str, Points]) -> Mapping[str, Any]:
    """Return the middle: the point that all axes have in common."""
    first, *others = along.values()
    return next(point for point in first if all(point in points for points in others))


def place(panel: Axes, labels: Sequence[Annotation]) -> None:
    """Move each label to the first place near its marker where it covers no line and no other label."""
    legend = panel.get_legend()
    assert legend is not None
    taken = [legend.get_window_extent()]
    corners = [panel.transData.transform(np.asarray(line.get_xydata())) for line in panel.lines]
    steps = np.linspace(0, 1, 500)[:, None]
    dots = np.concatenate([a + steps * (b - a) for line in corners for a, b in pairwise(line)])
    for label in labels:

        def covered(where: tuple[int, int, str], label: Annotation = label) -> int:
            move(label, where)
            box = label.get_window_extent()
            outside = not (panel.bbox.contains(*box.min) and panel.bbox.contains(*box.max))
            return int(box.count_contains(dots)) + 1000 * box.count_overlaps(taken) + 1000 * outside

        move(label, min(PLACES, key=covered))
        taken.append(label.get_window_extent())


def move(label: Annotation, where: tuple[int, int, str]) -> None:
    """Put a label at an offset from its marker, in points."""
    x, y, side = where
    label.set_position((x, y))
    label.set_horizontalalignment(side)  # type: ignore[arg-type]
    label.set_verticalalignment("center")
