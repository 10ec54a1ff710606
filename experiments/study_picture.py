"""Draws the picture of the study: accuracy of the CNN against images viewed, and against time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from study_grid import EPOCHS, TIMES, longer

LABELS = {"none": "alone", "scalekd": "ScaleKD"}
STYLES = {"none": ("#0072B2", "o"), "scalekd": ("#D55E00", "s")}  # two of Okabe and Ito's colours


def draw(runs: dict[str, list[dict[str, Any]]], cost: dict[str, Any] | None, file: Path) -> None:
    """Write the picture.

    Args:
        runs: Results of the runs by name without the seed.
        cost: Time per image by method and family, relative to training alone; None to draw images viewed only.
        file: SVG file to write.
    """
    mpl.rcParams.update({"svg.hashsalt": "scalekd", "font.size": 9})
    figure = Figure(figsize=(8 if cost else 4.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if cost else 1, sharey=True, squeeze=False)[0]
    for method in LABELS:
        points = curve(runs, method)
        line(panels[0], method, [(images / 1000, low, top1, high) for images, low, top1, high in points])
        if cost:
            ratio = cost["cnn"]["time_ratio"][method]["median"]
            base = runs["cnn-none"][0]["result"]["samples"]
            line(panels[1], method, [(images / base * ratio, *rest) for images, *rest in points])
    panels[0].set(xlabel="images viewed, thousands", ylabel="top-1, %", xscale="log")
    if cost:
        panels[1].set(xlabel=f"time, 1 = {EPOCHS} epochs alone", xscale="log")
    for panel in panels:
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False)
        ticks: list[float] = []
        for tick in sorted({float(x) for drawn in panel.lines for x in drawn.get_xdata()}):
            if not ticks or tick > 1.3 * ticks[-1]:  # else their texts would touch
                ticks.append(tick)
        panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
    figure.savefig(file, metadata={"Date": None})


def curve(runs: dict[str, list[dict[str, Any]]], method: str) -> list[tuple[float, float, float, float]]:
    """Return the images viewed, with the minimum, mean and maximum accuracy over seeds."""
    found = []
    for times in TIMES:
        records = runs.get(f"cnn-{method}{longer(times)}", [])
        top1 = [record["result"]["top1"] for record in records]
        if top1:
            found.append((records[0]["result"]["samples"], min(top1), sum(top1) / len(top1), max(top1)))
    return found


def line(panel: Axes, method: str, points: list[tuple[float, float, float, float]]) -> None:
    colour, marker = STYLES[method]
    x, low, middle, high = zip(*points, strict=True) if points else ((), (), (), ())
    panel.plot(x, middle, color=colour, marker=marker, label=LABELS[method])
    panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
