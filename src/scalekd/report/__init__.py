"""The run report: one page of what a run left, and the paper's figures of it."""

from scalekd.report.measure import Figures, measure_figures
from scalekd.report.page import render_markdown, render_page
from scalekd.report.record import Record, read_runs

__all__ = ["Figures", "Record", "measure_figures", "read_runs", "render_markdown", "render_page"]
