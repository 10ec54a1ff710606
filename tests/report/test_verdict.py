"""The report says whether the teacher paid off, compared with labels only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY_RUN, Cli

from scalekd.report import read_runs
from scalekd.report.verdict import verdicts


def with_result(run: Path, name: str, top1: float, seconds: float, **keys: object) -> Path:
    """Copy a run under a new name, with another accuracy, time and recipe keys."""
    copy = Path(shutil.copytree(run, run.parent / name))
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"top1": top1, "seconds": seconds}))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    changed = [line | ({"val/top1": top1} if "val/top1" in line else {}) for line in lines]
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, changed)) + "\n")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | keys))
    return copy


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "copied"))


def said(*folders: Path) -> list[str]:
    return verdicts(read_runs(folders))


def test_each_method_is_compared_with_labels_only(copied: Path) -> None:
    alone = [with_result(copied / "none", f"alone{seed}", top1, 100) for seed, top1 in enumerate((60.0, 62.0))]
    exact = [with_result(copied / "scalekd", f"exact{seed}", top1, 800) for seed, top1 in enumerate((65.0, 66.0))]
    lean = with_result(copied / "scalekd", "lean", 50, 120, lean=True)
    assert said(*alone, *exact, lean) == [
        "ScaleKD: 65.5 ± 0.7% (2 runs) against 61.0 ± 1.4% (2 runs) on labels only, in 8 times the time, 4.5 points "
        "better.",
        "ScaleKD, lean: 50.0% against 61.0 ± 1.4% (2 runs) on labels only, in 1.2 times the time. Training alone is "
        "11.0 points better here.",
    ]


def test_a_small_gap_of_single_runs_says_nothing(copied: Path) -> None:
    pair = with_result(copied / "none", "alone", 60, 100), with_result(copied / "scalekd", "exact", 61.5, 100)
    (line,) = said(*pair)
    assert line.endswith("Single runs that differ by less than 2 points are not distinguished.")


def test_other_students_are_not_compared_and_a_comparison_is_asked_for(copied: Path) -> None:
    alone = with_result(copied / "none", "alone", 60, 100, student="resnet34")
    exact = with_result(copied / "scalekd", "exact", 70, 100)
    (line,) = said(alone, exact)
    assert "--method none" in line
    assert said(exact) == [line]
    assert said(alone) == []
    (exact / "result.json").unlink()
    assert said(exact) == [], "an unfinished run has no verdict"


def test_a_student_as_good_as_its_teacher_is_told_what_to_do(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """Three colours are learned in a few steps; the random teacher does not know them."""
    flags = (*TINY_RUN, "--epochs", "8", "--no-check-teacher", "--logit-weight", "0")
    command = ("distill", "--data", data, "--teacher", teacher_file, *flags)
    assert "as good as its teacher" not in cli(*command, "--output", tmp_path / "unchecked").err
    shutil.rmtree(tmp_path / "unchecked")
    checked = [flag for flag in command if flag != "--no-check-teacher"]
    outcome = cli(*checked, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "is as good as its teacher" in outcome.err.splitlines()[-1]
    assert "scalekd adapt --mode finetune" in outcome.err.splitlines()[-1]
