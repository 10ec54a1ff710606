"""The notebook runs from its first cell to its last and draws its figures."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "distil.ipynb"


def test_the_notebook_runs_in_a_short_form(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # they would be of another revision, and unreadable in a diff
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "\nteacher_epochs, student_epochs, images = 6, 2, 16"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "teacher  top-1" in "".join(output.get("text", "") for output in outputs)
