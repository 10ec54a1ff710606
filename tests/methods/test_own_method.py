"""The documented example of a method of one's own works as it is written, and nothing else has to change for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_RUN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-method.md").read_text()
(MODULE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
(PATCH,) = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.M | re.S)
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scalekd(tmp_path: Path) -> Command:
    """The command line of a copy of the package with the example in it."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "src" / "scalekd" / "methods" / "toy.py").write_text(MODULE)
    subprocess.run(["git", "apply", "-"], input=PATCH, text=True, cwd=copy, check=True)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scalekd", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(copy / "src")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_example_is_short() -> None:
    assert len(MODULE.splitlines()) + PATCH.count("\n+ ") < 40


def test_the_example_trains_and_is_known_everywhere(
    scalekd: Command, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings = (*TINY_RUN, "--data", data, "--output", output, "--teacher", teacher_file, "--no-check-teacher")
    trained = scalekd("distill", "--method", "toy", "--toy-weight", "0.5", *settings)
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if "train/toy" in line)
    assert {"train/task", "train/kd", "train/toy", "cosine/toy"} <= first.keys()
    assert first["train/toy"] == pytest.approx(0.5 * (1 - first["cosine/toy"]), abs=1e-5)
    assert last["train/toy"] < first["train/toy"], "it learns"
    assert "toy_weight: 0.5" in (output / "recipe.yaml").read_text()
    assert "with mean features (toy) on" in scalekd("report", output, "--markdown", "--images", "0").stdout
    shown = " ".join(scalekd("distill", "--help", "all").stdout.split())
    assert "toy: mean features." in shown
    assert "--toy-weight FLOAT Weight of toy's distance. [default: 1.0]" in shown
    refused = scalekd("distill", "--method", "kd", "--toy-weight", "1", *settings)
    assert (refused.returncode, "toy_weight is no key of method kd (but of toy)" in refused.stderr) == (2, True)
