"""Builds the table that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalekd.report.measure import Figures
from scalekd.report.record import Record
from scalekd.report.words import amount, duration, model_name, step_parts

_FIGURES = {"top1": "top-1 %", "top5": "top-5 %", "map": "mAP %"}


def comparison_table(pairs: Sequence[tuple[Record, Figures]]) -> tuple[list[str], list[list[tuple[str, Any]]]]:
    """Build a table that compares runs.

    Returns:
        The column titles, and for each run the cells as pairs of text and sort key.
    """
    shown = [name for name in _FIGURES if name != "map" or any(record.metric == "map" for record, _ in pairs)]
    titles = ["run", "state", "method", "teacher", "student", "seed", "epochs", *(_FIGURES[name] for name in shown),
              "teacher %", "images viewed", "time", "FLOPs"]  # fmt: skip
    return titles, [_row(record, found, shown) for record, found in pairs]


def _row(record: Record, figures: Figures, shown: Sequence[str]) -> list[tuple[str, Any]]:
    def number(value: float | None, form: str = "{:.2f}") -> tuple[str, Any]:
        return ("-", "") if value is None else (form.format(value), value)

    done, flops = record.epochs_done, figures.flops
    teacher = "-" if record.method == "none" else model_name(record, "teacher")
    state = "finished" if record.finished else "unfinished"
    total = None if flops is None else sum(step_parts(record, flops).values()) * record.samples
    return [
        (record.name, record.name), (state, state), (record.method, record.method), (teacher, teacher),
        (model_name(record, "student"), model_name(record, "student")),
        number(record.keys.get("seed"), "{}"),
        number(done, "{:.3g}"), *(number(record.last(f"val/{name}")) for name in shown),
        number(record.teacher_accuracy), number(record.samples, "{:,}"),
        ("-", "") if record.seconds is None else (duration(record.seconds), record.seconds),
        ("-", "") if total is None else (amount(total), total),
    ]  # fmt: skip
