"""The section of docs/data.md on labelling tools: its rows, and its scripts as a reader would have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
SECTION = _TEXT.partition("## What labelling tools export\n")[2].partition("\n## ")[0]


def scripts() -> dict[str, Any]:
    """The functions that the section shows."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", SECTION, re.S):
        exec(block, names)
    return names


def row(tool: str) -> str:
    """The row of the tables whose first cell begins so."""
    found = [line for line in SECTION.splitlines() if line.startswith(f"| {tool}")]
    assert len(found) == 1, f"{len(found)} rows begin with {tool}"
    return found[0]
