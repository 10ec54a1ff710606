"""A run that cannot go on says why, and the reason is so."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_KEYS, TINY_RUN, Cli, newest_checkpoint
from rich.console import Console

from scalekd.errors import UserError
from scalekd.recipes import Recipe, load
from scalekd.runs.folder import RunFolder
from scalekd.tasks.distill import distill


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A run of twelve images in batches of six that has not ended."""
    shutil.copytree(runs / "none", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch", "4"), "batch is 4"),  # lr and micro_batch follow
        (("--batch", "12"), "batch is 12"),
        (("--epochs", "1"), "epochs is 1"),
        (("--seed", "1"), "seed is 1"),
        (("--batch", "4", "--lr", "0.01"), "batch is 4"),
        (("--lr", "1e-2", "--crop-scale", "0.5,1"), "crop_scale is [0.5, 1.0]"),
        (("--method", "kd"), "method is 'kd'"),
        (("--student-args", "{layers: [2, 1, 1, 1]}"), "student_args is"),
        (("--recipe", "imagenette", "--method", "none", "--epochs", "1"), "epochs is 1"),
    ],
)
def test_the_key_that_is_named_is_one_that_was_given(cli: Cli, run: Path, flags: tuple[str, ...], named: str) -> None:
    cli("distill", "--resume", "--output", run, *flags).refused("resume: ", named, "remove it", "--overwrite")
    cli("distill", "--auto-resume", "--output", run, *flags).refused("resume: ", named)


def test_only_an_explicit_resume_trains_for_more_epochs(cli: Cli, run: Path, tmp_path: Path) -> None:
    again = ("distill", "--auto-resume", "--output", run)
    cli(*again, "--epochs", "50").refused("resume: epochs is 50", "--resume (not --auto-resume)")
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(stored | {"epochs": 50}))
    cli(*again, "--recipe", tmp_path / "longer.yaml").refused("resume: epochs is 50", "--resume (not --auto-resume)")
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == stored


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch", "0"), "batch"),
        (("--lr", "fast"), "lr"),
        (("--micro-batch", "4"), "micro_batch: 4 does not divide the batch of 6"),
    ],
)
def test_what_is_no_value_at_all_is_told_as_ever(cli: Cli, run: Path, flags: tuple[str, ...], named: str) -> None:
    cli("distill", "--resume", "--output", run, *flags).refused(named)


def test_what_follows_from_a_key_is_not_named_in_its_place(run: Path, runs: Path) -> None:
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    for changed, named in (({"batch": 4}, "batch is 4"), ({"epochs": 20, "warmup_epochs": None}, "epochs is 20")):
        wanted = stored | changed | {"micro_batch": None}
        if "batch" in changed:
            wanted |= {"lr": 0.02, "min_lr": 0.1}
        if "epochs" in changed:
            del wanted["warmup_epochs"]
        with pytest.raises(UserError, match=named):
            RunFolder(run).check_same(load(None, wanted))
    with pytest.raises(UserError, match=r"lr is 0\.02"):
        RunFolder(run).check_same(load(None, stored | {"lr": 0.02}))


def test_the_same_values_written_otherwise_are_the_same(cli: Cli, run: Path) -> None:
    flags = ("--batch", "6", "--lr", "1e-2", "--crop-fraction", "1.0", "--warmup-epochs", "0")
    outcome = cli("distill", "--resume", "--output", run, *flags)
    assert outcome.code == 0, outcome.err
    assert "micro_batch" not in outcome.err


def test_a_fine_tuning_goes_on_with_its_own_settings(
    cli: Cli, listed: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    output = tmp_path / "tuned"
    command = ("adapt", teacher_file, "--mode", "finetune", "--data", listed, "--output", output)
    small = ("--epochs", "2", "--batch", "4", "--workers", "0", "--precision", "float32", "--lr", "0.002")
    assert cli(*command, *small).code == 0
    for file in ("result.json", "teacher.safetensors"):
        (output / file).unlink()
    cli(*command, "--resume", "--batch", "6").refused("batch is 6", "started with 4")
    with monkeypatch.context() as patch:
        patch.setattr("scalekd.engine.loop.Loop._validate", press_ctrl_c)
        newest_checkpoint(output).unlink()
        stopped = cli(*command, "--resume")
    assert stopped.code == 130, stopped.err
    resume = f"adapt {teacher_file} --mode finetune --resume --output {output}"
    assert stopped.err.strip().endswith(f"scalekd {resume}")
    outcome = cli(*resume.split())
    assert outcome.code == 0, outcome.err
    assert (output / "teacher.safetensors").is_file()


def test_a_checkpoint_that_may_not_be_read_is_not_put_aside(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    newest = newest_checkpoint(run)
    with monkeypatch.context() as patch:
        patch.setattr("scalekd.runs.checkpoints.zipfile.ZipFile", forbidden)
        cli("distill", "--resume", "--output", run).refused(newest.name, "Permission denied", "make it readable")
    assert newest.is_file()


def test_a_file_of_another_program_is_called_that(cli: Cli, run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        torch.save({"weight": torch.zeros(2)}, file)
    cli("distill", "--resume", "--output", run).refused("of another program", "--overwrite")


def test_code_that_builds_another_student_is_called_that(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import timm\nWIDTH = 16\ndef net(num_classes):\n"
        "    channels = [8, 8, 16, WIDTH]\n"
        "    return timm.create_model('resnet18', layers=[1] * 4, channels=channels, num_classes=num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_changing_net.py").write_text(code)
    keys = TINY_KEYS | {"data": str(listed), "method": "none", "student": "python:my_changing_net.net"}
    recipe = load(None, keys | {"student_args": {}, "student_maps": ("layer3", "layer4")})
    distill(recipe, str(tmp_path / "run"), console=Console(quiet=True))
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr("my_changing_net.WIDTH", 24)
    with pytest.raises(UserError, match=r"built differently than when .*\.ckpt was written: .* was \[.*a package"):
        distill(recipe, tmp_path / "run", resume=True, console=Console(quiet=True))


def test_other_packages_are_named_where_inputs_changed_and_where_a_run_goes_on(cli: Cli, run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["packages"]["timm"] = "0.1.2"
    (run / "environment.json").write_text(json.dumps(environment))
    inputs = (run / "inputs.json").read_text()
    changed = json.loads(inputs) | {"training data": "12 images, 0123456789abcdef"}
    (run / "inputs.json").write_text(json.dumps(changed))
    cli("distill", "--resume", "--output", run).refused("training data changed", "timm 0.1.2 ->", "restore it")
    (run / "inputs.json").write_text(inputs)
    outcome = cli("distill", "--resume", "--output", run)
    assert outcome.code == 0, outcome.err
    assert "timm 0.1.2 ->" in outcome.err


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({}, {"teacher weights": "ab"}, "was started without teacher weights"),
        ({"teacher weights": "ab"}, {}, "was started with teacher weights"),
        ({"teacher weights": "ab"}, {"teacher weights": "cd"}, "teacher weights changed"),
    ],
)
def test_weights_that_are_new_gone_or_others_are_told_apart(
    run: Path, then: dict[str, str], now: dict[str, str], said: str
) -> None:
    decoding = json.loads((run / "inputs.json").read_text())["decoding"]
    (run / "inputs.json").write_text(json.dumps({"decoding": decoding} | then))
    with pytest.raises(UserError, match=said):
        RunFolder(run).prepare(Recipe(), now, resume=True)


def test_data_that_moved_is_asked_for(cli: Cli, data: Path, tmp_path: Path) -> None:
    output, moved = tmp_path / "run", tmp_path / "moved"
    assert cli("distill", "--method", "none", "--data", data, "--output", output, *TINY_RUN).code == 0
    (output / "result.json").unlink()
    data.rename(moved)
    cli("distill", "--resume", "--output", output).refused(str(data))
    assert cli("distill", "--resume", "--output", output, "--data", moved).code == 0
