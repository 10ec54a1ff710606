"""Packages import downwards only, in the order of CONTRIBUTING's table; the modules beside them import no package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "scalekd"
ENTRIES = {"__init__.py", "__main__.py", "api.py"}  # what users import, and what they start


def ranks() -> dict[str, int]:
    """The packages of the table, each with its row."""
    rows = re.findall(r"^ *\| ((?:`\w+/`(?:, )?)+) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    return {package: number for number, row in enumerate(rows) for package in re.findall(r"`(\w+)/`", row)}


def imported(code: str) -> Iterator[str]:
    """The packages of ours that a module's code imports, wherever it does so."""
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names += (
                [f"scalekd.{each.name}" for each in node.names] if node.module == "scalekd" else [node.module or ""]
            )
        yield from (name.split(".")[1] for name in names if name.startswith("scalekd."))


def upwards(place: str, code: str) -> list[str]:
    """The packages that a module must not import, but does."""
    rank, top = ranks(), place.partition("/")[0]
    if top in ENTRIES or ("/" in place and top not in rank):
        return []
    return [name for name in imported(code) if name in rank and rank[name] < rank.get(top, len(rank))]


def test_packages_import_downwards_only() -> None:
    modules = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    found = {place: wrong for place, code in modules.items() if (wrong := upwards(place, code))}
    assert found == {}


def test_an_import_upwards_is_found() -> None:
    assert {"cli", "engine", "runs", "models"} <= ranks().keys()
    assert upwards("runs/group.py", "def later():\n    from scalekd.engine.signals import Stop") == ["engine"]
    assert upwards("locks.py", "import scalekd.models.weights") == ["models"]
    assert upwards("runs/lock.py", "from scalekd import engine") == ["engine"]
    assert upwards("engine/loop.py", "from scalekd.runs.folder import RunFolder") == []
