"""`keep_best` keeps the weights of the best validation, also in a run that is stopped and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli, newest_checkpoint

from scalekd.models.weights import read_weights
from scalekd.tasks.distill.task import StudentLearner

FLAGS = (*TINY_RUN, "--method", "none", "--epochs", "4", "--keep", "4")
CURVE = [40.0, 70.0, 70.0, 50.0]  # top-1 of each validation: the first of the best counts


@pytest.fixture(autouse=True)
def _curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the accuracies of `CURVE`."""
    honest = StudentLearner.log_validation

    def log(self: StudentLearner, figures: dict[str, float], step: int) -> None:
        honest(self, figures | {"val/top1": CURVE[step // 2 - 1]}, step)

    monkeypatch.setattr(StudentLearner, "log_validation", log)


def test_the_best_is_kept_and_measured_like_the_last(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = cli("distill", "--data", data, "--output", run, *FLAGS, "--keep-best")
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "result.json").read_text())
    assert result["best"] == {"step": 4, "top1": 70.0, "student": "student.best.safetensors"}
    assert result["top1"] == 50
    best, card = read_weights(run / "student.best.safetensors")
    assert card is not None
    assert (card.top1, card.classes) == (70, ("blue", "green", "red"))
    last, _ = read_weights(run / "student.safetensors")
    assert any(not best[name].equal(last[name]) for name in best)
    assert json.loads(cli("evaluate", run / "student.best.safetensors", "--data", data, "--json").out)["images"] == 6


def test_a_resumed_run_keeps_the_same(cli: Cli, data: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli("distill", "--data", data, "--output", whole, *FLAGS, "--keep-best").code == 0
    for epochs_done in (1, 3):
        shutil.copytree(whole, run)
        (run / "result.json").unlink()
        for _ in range(4 - epochs_done):
            newest_checkpoint(run).unlink()
        if epochs_done == 1:
            (run / "student.best.safetensors").unlink()
        assert cli("distill", "--resume", "--output", run).code == 0
        results = [json.loads((folder / "result.json").read_text())["best"] for folder in (whole, run)]
        assert results[0] == results[1]
        files = [(folder / "student.best.safetensors").read_bytes() for folder in (whole, run)]
        assert files[0] == files[1]
        shutil.rmtree(run)


def test_it_is_off_by_default_and_cleared_with_the_run(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *FLAGS, "--keep-best").code == 0
    assert cli("distill", "--data", data, "--output", run, *FLAGS, "--overwrite").code == 0
    assert not (run / "student.best.safetensors").exists()
    assert "best" not in json.loads((run / "result.json").read_text())
