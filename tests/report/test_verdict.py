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


def test_each_setting_is_compared_with_labels_only(copied: Path) -> None:
    alone = [with_result(copied / "none", f"a{n}", top1, 100, seed=n) for n, top1 in enumerate((60.0, 62.0))]
    exact = [with_result(copied / "scalekd", f"e{n}", top1, 800, seed=n) for n, top1 in enumerate((65.0, 66.0))]
    lean = with_result(copied / "scalekd", "l", 50, 120, lean=True)
    base = "61.0 ± 1.4% (2 runs) of labels only (a0, a1), in"
    time = "times the training time (without fitting the teacher and filling a cache)."
    assert sorted(said(*alone, *exact, lean)) == [
        f"ScaleKD (e0, e1): 65.5 ± 0.7% (2 runs) against {base} 8.0 {time} That is 4.5 points better.",
        f"ScaleKD, lean (l): 50.0% against {base} 1.2 {time} Labels only is 11.0 points better here.",
    ]


def test_other_settings_are_not_averaged_and_the_nearest_time_counts(copied: Path) -> None:
    short = with_result(copied / "none", "short", 40, 100, epochs=4)
    long = with_result(copied / "none", "long", 73, 750, epochs=32)
    exact = with_result(copied / "scalekd", "exact", 68, 800)
    (line,) = said(short, long, exact)
    assert "68.0% against 73.0% of labels only (long)" in line
    assert line.endswith("Labels only is 5.0 points better here.")


@pytest.mark.parametrize(
    ("alone", "taught", "told"),
    [
        ([60.0], [62.0], "the difference of 2.0 points is within the noise."),
        ([60.0], [60.0], "the difference of 0.0 points is within the noise."),
        ([60.0], [62.1], "That is 2.1 points better."),
        ([60.0, 66.0], [63.0, 63.4], "the difference of 0.2 points is within the noise."),
        ([60.0, 60.2], [61.0, 61.2], "That is 1.0 points better."),
    ],
)
def test_noise_is_called_noise(copied: Path, alone: list[float], taught: list[float], told: str) -> None:
    runs = [
        with_result(copied / kind, f"{kind}{n}", top1, 100, seed=n)
        for kind, values in (("none", alone), ("scalekd", taught))
        for n, top1 in enumerate(values)
    ]
    (line,) = said(*runs)
    assert line.endswith(told)


def test_other_students_are_not_compared_and_a_comparison_is_asked_for_once(copied: Path) -> None:
    alone = with_result(copied / "none", "alone", 60, 100, student_args={"layers": [2, 1, 1, 1]})
    exact = with_result(copied / "scalekd", "exact", 70, 100)
    other = with_result(copied / "scalekd", "other", 70, 100, student="resnet34")
    (line,) = said(alone, exact, other)
    assert "--method none" in line
    assert said(exact) == [line]
    assert said(alone) == []
    (exact / "result.json").unlink()
    assert said(exact) == [], "an unfinished run has no verdict"


def test_another_number_of_training_images_is_told(copied: Path) -> None:
    alone = with_result(copied / "none", "alone", 60, 100)
    inputs = json.loads((alone / "inputs.json").read_text())
    (alone / "inputs.json").write_text(json.dumps(inputs | {"training data": "5 images (other)"}))
    (line,) = said(alone, with_result(copied / "scalekd", "exact", 70, 100))
    assert ", of 12 against 5 training images, in" in line


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
