"""`patience` ends a run whose accuracy no longer rises, also if it was stopped and resumed in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli, newest_checkpoint

from scalekd.tasks.distill.task import StudentLearner

FLAGS = (*TINY_RUN, "--method", "none", "--epochs", "6", "--keep", "6")
CURVE = [40.0, 70.0, 70.0, 60.0, 80.0, 90.0]  # top-1 of each validation


@pytest.fixture(autouse=True)
def _curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the accuracies of `CURVE`."""
    honest = StudentLearner.log_validation

    def log(self: StudentLearner, figures: dict[str, float], step: int) -> None:
        honest(self, figures | {"val/top1": CURVE[step // 2 - 1]}, step)

    monkeypatch.setattr(StudentLearner, "log_validation", log)


def steps(run: Path) -> int:
    return int(json.loads((run / "result.json").read_text())["steps"])


@pytest.mark.parametrize(("patience", "taken"), [(1, 6), (2, 8), (3, 12)])
def test_a_run_ends_after_so_many_validations_without_a_better_one(
    cli: Cli, data: Path, tmp_path: Path, patience: int, taken: int
) -> None:
    run = tmp_path / "run"
    outcome = cli("distill", "--data", data, "--output", run, *FLAGS, "--patience", str(patience))
    assert outcome.code == 0, outcome.err
    assert steps(run) == taken
    assert (f"ended     after step {taken} of 12" in outcome.err) == (taken < 12)


def test_a_resumed_run_ends_at_the_same_step(cli: Cli, data: Path, tmp_path: Path) -> None:
    """It is stopped between the best validation and the end, and after the last checkpoint."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli("distill", "--data", data, "--output", whole, *FLAGS, "--patience", "2").code == 0
    for removed in (1, 0):
        shutil.copytree(whole, run)
        (run / "result.json").unlink()
        for _ in range(removed):
            newest_checkpoint(run).unlink()
        outcome = cli("distill", "--resume", "--output", run)
        assert outcome.code == 0, outcome.err
        assert steps(run) == 8
        assert (run / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
        shutil.rmtree(run)


def test_more_patience_continues_a_run_that_has_ended(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *FLAGS, "--patience", "1").code == 0
    cli("distill", "--resume", "--output", run).refused("is finished")
    assert cli("distill", "--resume", "--output", run, "--patience", "2").code == 0
    assert steps(run) == 8
    assert "epochs_before" not in json.loads((run / "result.json").read_text())


def test_a_continued_run_begins_to_wait_again(cli: Cli, data: Path, tmp_path: Path) -> None:
    """Its accuracy falls while the learning rate rises: the run of 4 epochs ends with one validation waited."""
    run = tmp_path / "run"
    flags = (*TINY_RUN, "--method", "none", "--epochs", "3", "--patience", "2")
    assert cli("distill", "--data", data, "--output", run, *flags).code == 0
    assert steps(run) == 6
    assert cli("distill", "--resume", "--output", run, "--epochs", "6").code == 0
    assert steps(run) == 12


def test_more_patience_and_epochs_continue_a_run_that_has_ended(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *FLAGS[:-4], "--epochs", "4", "--patience", "1").code == 0
    assert steps(run) == 6
    assert cli("distill", "--resume", "--output", run, "--epochs", "6", "--patience", "5").code == 0
    assert steps(run) == 12


def test_without_a_measured_accuracy_it_is_refused(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "val")
    command = ("distill", "--data", data, "--output", tmp_path / "run", "--teacher", teacher_file, *TINY_RUN)
    cli(*command, "--labels", "none", "--patience", "2").refused("patience", "no accuracy is measured")
    assert not (tmp_path / "run").exists()
