"""Builds the charts of a report from logs and measured figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scalekd.report.charts import Cell, Chart, Series
from scalekd.report.measure import Figures
from scalekd.report.record import Record
from scalekd.report.series import Points, epoch_means, points, thin
from scalekd.report.spectra import Floats, bands, decades

_BINS = 48
_TERMS = {
    "loss": "all terms", "task": "task (labels)", "kd": "kd (logits)", "inter": "inter-class relation",
    "intra": "intra-class relation",
}  # fmt: skip


def _name(key: str) -> str:
    """Return a human-readable name of a logged figure."""
    plain = key.partition("/")[2]
    return _TERMS.get(plain, plain.replace("_", ", "))


def keys_of(records: Sequence[Record], prefix: str) -> list[str]:
    """Return the keys of the logged figures that have a prefix, in the order of their first appearance."""
    seen = {key: None for record in records for line in record.lines for key in line if key.startswith(prefix)}
    return list(seen)


def _axis(records: Sequence[Record]) -> tuple[str, Callable[[Record, float], float]]:
    """Return the name of the horizontal axis and the function that maps a run's step to it.

    The axis shows epochs if all runs have equally many training images, otherwise the number of images viewed.
    """
    sizes = {record.training_images for record in records}
    if len(sizes) == 1 and None not in sizes:
        return "epoch", lambda record, step: step / (record.steps_an_epoch or 1)
    return "images viewed", lambda record, step: step * record.batch


def learning_charts(records: Sequence[Record]) -> list[Chart]:
    """Build the training charts: for one run a chart per kind of figure, for several runs a chart per figure."""
    charts = _of_one(records[0]) if len(records) == 1 else _of_several(records)
    return [chart for chart in charts if chart.shown]


def _of_one(record: Record) -> list[Chart]:
    x, place = _axis([record])

    def curve(key: str, *, by_epoch: bool = False) -> Points:
        logged = points(record.lines, key)
        logged = epoch_means(logged, record.steps_an_epoch) if by_epoch and record.steps_an_epoch else thin(logged)
        return [(place(record, step), value) for step, value in logged]

    terms = [key for key in keys_of([record], "train/") if key != "train/loss"]
    loss = [Series("all terms", curve("train/loss"))] if len(terms) > 1 else []
    top = [Series(f"student {key.removeprefix('val/')}", curve(key)) for key in keys_of([record], "val/")]
    teacher = record.teacher_accuracy
    level = None if teacher is None else (f"teacher {record.metric}", teacher)
    cosines = [Series(_name(key), curve(key, by_epoch=True)) for key in keys_of([record], "cosine/")]
    return [
        Chart("Loss, term by term", x, [*loss, *(Series(_name(key), curve(key)) for key in terms)],
              "Each term with its weight, as it enters the sum.", from_zero=True),
        Chart("Accuracy on the validation images, %", x, top, "Measured at each validation.", level=level),
        Chart("Teacher-student cosine, by term and epoch", x, cosines,
              "The mean over each epoch's log lines; 1 is perfect. Place and view of DFM: proxy or student."),
        Chart("Learning rate", x, [Series("learning rate", curve("lr"))], from_zero=True),
        Chart("Images per second", x, [Series("images per second", curve("images_per_second"))], from_zero=True),
    ]  # fmt: skip


def _of_several(records: Sequence[Record]) -> list[Chart]:
    x, place = _axis(records)

    def overlaid(title: str, key: str, note: str = "", *, by_epoch: bool = False, from_zero: bool = False) -> Chart:
        series = []
        for number, record in enumerate(records):
            logged, steps = points(record.lines, key), record.steps_an_epoch
            logged = epoch_means(logged, steps) if by_epoch and steps else thin(logged)
            series.append(Series(record.name, [(place(record, step), y) for step, y in logged], number))
        return Chart(title, x, series, note, from_zero=from_zero)

    tops = [
        overlaid(f"{key.removeprefix('val/')} on the validation images, %", key) for key in keys_of(records, "val/")
    ]
    terms = [overlaid(f"Loss: {_name(key)}", key, from_zero=True) for key in keys_of(records, "train/")]
    cosines = [
        overlaid(f"Teacher-student cosine: {_name(key)}", key, "The mean over each epoch.", by_epoch=True)
        for key in keys_of(records, "cosine/")
    ]
    return [*tops, *cosines, *terms, overlaid("Learning rate", "lr", from_zero=True)]


def spectrum_chart(shares: Floats) -> Chart:
    """Build the chart of the teacher's spectrum, summed over frequencies of equal order."""
    by_band = [(float(band), 100 * float(share)) for band, share in enumerate(bands(shares)) if share > 0]
    note = "0 is the zero frequency: a channel's mean over the image."
    order = "order of the frequency, u + v"
    return Chart(
        "Share of energy by order of frequency, %", order, [Series("teacher", by_band)], note, logarithmic=True
    )


def spectrum_cells(shares: Floats) -> list[Cell]:
    """Build the heat map of the teacher's spectrum, on a logarithmic scale of three decades."""
    strength = decades(shares)
    return [
        Cell(u, v, round(float(strength[v, u]), 3), f"frequency ({v}, {u}): {100 * shares[v, u]:.3g}% of the energy")
        for v in range(shares.shape[0])
        for u in range(shares.shape[1])
    ]


def distance_charts(figures: Figures) -> list[Chart]:
    """Build a chart of the distribution of distances at each place: the share of positions in each bin."""
    if not figures.distances:
        return []
    everything = np.concatenate([values for found in figures.distances.values() for values in found.values()])
    edges = np.linspace(0, max(float(everything.max()), 1e-6), _BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    charts = []
    for place, found in figures.distances.items():
        series = []
        for name, values in found.items():
            share = 100 * np.histogram(values, edges)[0] / len(values)
            curve = list(zip(middles.tolist(), share.tolist(), strict=True))
            series.append(Series(f"{name} (mean {values.mean():.2f})", curve))
        title = "Distances of the proxies (TPP)" if place == "proxy" else "Distances of the student path"
        charts.append(
            Chart(title, "squared distance of a position", series, "Percent of all positions.", from_zero=True)
        )
    return charts
