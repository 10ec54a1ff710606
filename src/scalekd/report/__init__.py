"""The report of one or several runs: an HTML page or Markdown table built from their run folders.

Reading the files (`record.py`) is separate from measuring with the models (`measure.py`) and from rendering
(`page.py`). Nothing here trains or changes a run.
"""

from scalekd.report.measure import Figures, measure_figures
from scalekd.report.page import render_markdown, render_page
from scalekd.report.record import Record, read_runs

__all__ = ["Figures", "Record", "measure_figures", "read_runs", "render_markdown", "render_page"]
