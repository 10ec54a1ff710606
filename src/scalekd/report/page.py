"""Renders records and figures as one self-contained HTML page, or as a short Markdown table."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import scalekd
from scalekd.errors import printable
from scalekd.evaluation.per_class import ClassFigures, class_figures
from scalekd.report import words
from scalekd.report.charts import Cell, Chart
from scalekd.report.curves import distance_charts, learning_charts, spectrum_cells, spectrum_chart
from scalekd.report.measure import Figures
from scalekd.report.predictions import accuracy, confusion, mistaken
from scalekd.report.record import Record
from scalekd.report.table import comparison_table
from scalekd.report.verdict import verdicts

_MOST_CLASSES = 40  # a confusion matrix of more classes cannot be read
_MISTAKES = 10


@dataclass(frozen=True)
class _Run:
    """A run in the form that the templates use."""

    id: str
    record: Record
    figures: Figures
    curves: list[Chart]

    @property
    def summary(self) -> list[str]:
        return words.summary(self.record, self.figures)

    @property
    def spectrum(self) -> Chart | None:
        return None if self.figures.spectrum is None else spectrum_chart(self.figures.spectrum)

    @property
    def zero_share(self) -> float:
        assert self.figures.spectrum is not None
        return 100 * float(self.figures.spectrum[0, 0])

    @property
    def cells(self) -> list[Cell]:
        assert self.figures.spectrum is not None
        return spectrum_cells(self.figures.spectrum)

    @property
    def down(self) -> int:
        return 0 if self.figures.spectrum is None else self.figures.spectrum.shape[0]

    @property
    def across(self) -> int:
        return 0 if self.figures.spectrum is None else self.figures.spectrum.shape[1]

    @cached_property
    def distances(self) -> list[Chart]:
        return distance_charts(self.figures)

    @property
    def sample_top1(self) -> float:
        return accuracy(self.figures.given)

    @property
    def sample_teacher(self) -> float | None:
        return accuracy(self.figures.teacher_given) if self.figures.teacher_given else None

    @property
    def confusion(self) -> list[list[tuple[int, float]]]:
        """Count and strength of each cell; empty if there are too many classes."""
        if len(self.figures.classes) > _MOST_CLASSES:
            return []
        counts = confusion(self.figures.given, len(self.figures.classes))
        rows = [(row, max(int(row.sum()), 1)) for row in counts]
        return [[(int(count), round(0.85 * int(count) / total, 3)) for count in row] for row, total in rows]

    @property
    def mistaken(self) -> list[tuple[int, int, int]]:
        return mistaken(confusion(self.figures.given, len(self.figures.classes)), _MISTAKES)

    @property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """Figures of each class, the lowest F1 first."""
        counts = confusion(self.figures.given, len(self.figures.classes))
        columns = (counts.diagonal(), counts.sum(0) - counts.diagonal(), counts.sum(1))
        found = class_figures(self.figures.classes, zip(*(column.tolist() for column in columns), strict=True))
        return tuple(sorted(found, key=lambda each: -1.0 if each.f1 is None else each.f1))

    @property
    def cost(self) -> dict[str, str]:
        return words.cost(self.record, self.figures)

    @property
    def environment(self) -> dict[str, str]:
        return words.environment(self.record)

    @property
    def hashes(self) -> dict[str, str]:
        return words.hashes(self.record)

    @property
    def commands(self) -> list[str]:
        return words.commands(self.record)

    @property
    def revision(self) -> str | None:
        return self.record.environment.get("git")

    @property
    def recipe(self) -> str:
        return yaml.safe_dump(self.record.keys, sort_keys=False).rstrip()

    @property
    def notes(self) -> list[str]:
        return [*self.record.notes, *self.figures.notes]


def render_page(records: Sequence[Record], figures: Sequence[Figures]) -> str:
    """Render a report of one or several runs as an HTML page.

    Args:
        records: The runs.
        figures: The figures measured for each run, in the same order.
    """
    many = len(records) > 1
    pairs = list(zip(records, figures, strict=True))
    runs = [
        _Run(f"run-{number}", record, found, [] if many else learning_charts([record]))
        for number, (record, found) in enumerate(pairs)
    ]
    titles, rows = comparison_table(pairs)
    style, script = (_text(name) for name in ("page.css", "page.js"))
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=f"{len(runs)} runs side by side"
            if many
            else f"{records[0].name}: {words.model_name(records[0], 'student')}",
            version=scalekd.__version__,
            policy=_policy(style, script),
            style=style,
            script=script,
            runs=runs,
            titles=titles,
            rows=rows,
            verdicts=verdicts(records),
            curves=learning_charts(records) if many else [],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("scalekd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: object) -> Markup:
    """Escape a text and allow the browser to break long names after `_` and `/`."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(printable(text)))))


def _text(name: str) -> str:
    return resources.files("scalekd.report").joinpath("templates", name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows our style and script only and loads nothing."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    return f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'"


def render_markdown(records: Sequence[Record], figures: Sequence[Figures]) -> str:
    """Render a short Markdown summary, for a pull request; it contains no paths of this machine."""
    pairs: list[Any] = list(zip(records, figures, strict=True))
    titles, rows = comparison_table(pairs)
    lines = [_row(titles), _row(["---"] * len(titles)), *(_row([text for text, _ in row]) for row in rows)]
    lines += [line for verdict in verdicts(records) for line in ("", _plain(verdict))]
    for record, found in pairs:
        lines += ["", f"**{_plain(record.name)}.** {_plain(' '.join(words.summary(record, found)))}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Escape a text so that it cannot break out of a table or the page."""
    return printable(text).replace("|", r"\|").replace("<", "&lt;")
