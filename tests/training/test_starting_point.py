"""A student that starts from weights is measured before the first step, and compared with its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY_CNN, TINY_RUN, Cli

from scalekd.evaluation import Accuracy
from scalekd.models import Student
from scalekd.tasks.distill import preflight


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the tiny student; any features tell the images' colours apart."""
    torch.manual_seed(1)
    student = Student("resnet18", num_classes=3, resolution=32, **TINY_CNN)
    student.save(tmp_path / "start.safetensors", CLASSES)
    return tmp_path / "start.safetensors"


def test_a_teacher_that_is_no_better_is_a_warning(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path, weights: Path
) -> None:
    own = ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--epochs", "1", "--logit-weight", "0")
    outcome = cli("distill", *own, "--student-weights", weights, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "student   starts from features that classify 100.0% of the images" in outcome.err
    assert "is no better than the features that the student starts from (100.0%)" in outcome.err
    assert "--method none" in outcome.err
    assert "lower --logit-weight" not in outcome.err, "it is 0"
    scratch = cli("distill", *own, "--output", tmp_path / "scratch")
    assert "starts from features" not in scratch.err
    assert "no better" not in scratch.err
    unchecked = cli("distill", *own, "--student-weights", weights, "--no-check-teacher", "--output", tmp_path / "un")
    assert "starts from features" not in unchecked.err


def test_a_better_teacher_is_none(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "measure_accuracy", lambda *_, **__: Accuracy({"top1": 100.5}, 6))
    own = ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--epochs", "1", "--student-weights", weights)
    outcome = cli("distill", *own, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "starts from features" in outcome.err
    assert "no better" not in outcome.err


def test_without_labels_nothing_is_measured(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path, weights: Path
) -> None:
    own = ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--epochs", "1", "--labels", "none")
    outcome = cli("distill", *own, "--student-weights", weights, "--logit-weight", "0", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "starts from features" not in outcome.err


def test_measuring_does_not_change_the_result(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path, weights: Path
) -> None:
    start = ("--student-weights", weights, "--logit-weight", "0")
    own = ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--epochs", "1", *start)
    for name, more in (("checked", ()), ("unchecked", ("--no-check-teacher",))):
        assert cli("distill", *own, *more, "--output", tmp_path / name).code == 0
    one, two = (tmp_path / name / "student.safetensors" for name in ("checked", "unchecked"))
    assert one.read_bytes() == two.read_bytes()
