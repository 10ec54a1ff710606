"""`--resume --epochs` trains a finished or stopped run for more epochs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY_RUN, Cli, newest_checkpoint

FLAGS = (*TINY_RUN, "--method", "none", "--epochs", "2")


@pytest.fixture
def run(cli: Cli, data: Path, tmp_path: Path) -> Path:
    """A finished run of 2 epochs, of 2 steps each."""
    assert cli("distill", "--data", data, "--output", tmp_path / "run", *FLAGS).code == 0
    return tmp_path / "run"


def read(run: Path, name: str) -> dict[str, object]:
    read: dict[str, object] = json.loads((run / name).read_text())
    return read


def rates(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["lr"] for line in lines if "lr" in line}


def test_a_finished_run_continues_on_the_longer_schedule(cli: Cli, data: Path, run: Path, tmp_path: Path) -> None:
    before = rates(run)
    outcome = cli("distill", "--resume", "--epochs", "4", "--output", run)
    assert outcome.code == 0, outcome.err
    assert "resume    for 4 epochs in all" in outcome.err
    result = read(run, "result.json")
    assert (result["steps"], result["epochs_before"]) == (8, [2])
    assert yaml.safe_load((run / "recipe.yaml").read_text())["epochs"] == 4
    assert cli("distill", "--data", data, "--output", tmp_path / "whole", *FLAGS, "--epochs", "4").code == 0
    whole, found = rates(tmp_path / "whole"), rates(run)
    assert {step: found[step] for step in (1, 2, 3, 4)} == before
    assert {step: found[step] for step in (5, 6, 7, 8)} == {step: whole[step] for step in (5, 6, 7, 8)}
    assert cli("distill", "--resume", "--epochs", "5", "--output", run).code == 0
    assert read(run, "result.json")["epochs_before"] == [2, 4]


def test_a_stopped_run_and_one_stopped_while_longer_are_resumed(cli: Cli, run: Path) -> None:
    (run / "result.json").unlink()
    newest_checkpoint(run).unlink()
    assert cli("distill", "--resume", "--epochs", "3", "--output", run).code == 0
    assert read(run, "result.json")["steps"] == 6
    (run / "result.json").unlink()
    newest_checkpoint(run).unlink()
    outcome = cli("distill", "--resume", "--output", run)
    assert outcome.code == 0, outcome.err
    assert "epochs in all" not in outcome.err
    result = read(run, "result.json")
    assert (result["steps"], result["epochs_before"]) == (6, [2])


def test_a_run_from_a_cache_repeats_its_views(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    flags = ("--data", data, "--teacher", teacher_file, *TINY_RUN, "--method", "kd", "--cache", tmp_path / "caches")
    assert cli("cache", *flags).code == 0
    run = tmp_path / "run"
    assert cli("distill", *flags, "--no-check-teacher", "--output", run).code == 0
    outcome = cli("distill", "--resume", "--epochs", "4", "--output", run)
    assert outcome.code == 0, outcome.err
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["epochs"], recipe["augmentation_epochs"]) == (4, 2)


def test_a_recipe_file_may_name_more_epochs(cli: Cli, data: Path, tmp_path: Path) -> None:
    """Its default warm-up follows from the epochs, and is 0 for 2 of them."""
    pairs = zip(TINY_RUN[::2], TINY_RUN[1::2], strict=True)
    flags = [flag for pair in pairs for flag in pair if pair[0] not in ("--epochs", "--warmup-epochs")]
    file = tmp_path / "own.yaml"
    chosen = ("distill", "--recipe", file, "--data", data, "--output", tmp_path / "run", *flags)
    file.write_text("method: none\nepochs: 2\n")
    assert cli(*chosen).code == 0
    file.write_text("method: none\nepochs: 12\n")
    outcome = cli(*chosen, "--resume")
    assert outcome.code == 0, outcome.err
    assert read(tmp_path / "run", "result.json")["steps"] == 24


def test_what_cannot_be_continued_is_refused_and_unchanged(cli: Cli, run: Path) -> None:
    content = (run / "result.json").read_bytes()
    resume = ("distill", "--output", run, "--resume")
    cli(*resume).refused("is finished", "--epochs", "--overwrite")
    cli(*resume, "--epochs", "1").refused("epochs is 1", "started with 2")
    cli(*resume, "--epochs", "4", "--lr", "0.5").refused("lr is 0.5")
    cli("distill", "--output", run, "--auto-resume", "--epochs", "4").refused("epochs is 4", "--resume")
    for file in (run / "checkpoints").glob("*.ckpt"):
        file.write_bytes(b"corrupt")
    assert cli(*resume, "--epochs", "4").code == 2
    assert (run / "result.json").read_bytes() == content
    shutil.rmtree(run / "checkpoints")
    cli(*resume, "--epochs", "4").refused("no checkpoint")
    assert (run / "result.json").read_bytes() == content
    assert yaml.safe_load((run / "recipe.yaml").read_text())["epochs"] == 2
