from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from conftest import CLASSES, TINY_CNN, TINY_RUN, TINY_SETTINGS, Cli, newest_checkpoint
from torch.nn import functional

from scalekd.data import Batch
from scalekd.data.loader import Sample, collate
from scalekd.models.weights import read_weights


def lines(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "images_per_second" not in line]


def result(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "result.json").read_text())
    return content


def distill(cli: Cli, data: Path, output: Path, *more: str | Path) -> dict[str, object]:
    tiny = TINY_SETTINGS if "--student" in more else TINY_RUN
    outcome = cli("distill", "--data", data, "--output", output, *tiny, *more)
    assert outcome.code == 0, outcome.err
    return result(output)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_waiting_for_data_is_reported(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    def slow(samples: list[Sample]) -> Batch:
        time.sleep(seconds)
        return collate(samples)

    monkeypatch.setattr("scalekd.data.loader.collate", slow)
    distilled = cli("distill", "--method", "none", "--data", data, "--output", tmp_path / "run", *TINY_RUN)
    assert distilled.code == 0, distilled.err
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data_wait"] for line in logged if "images_per_second" in line]
    assert len(shares) == 2
    for share in shares:
        assert 0 < share <= 1
        assert share > 0.5 or not seconds
        assert f"img/s  data wait {share:.0%}" in distilled.err


@pytest.mark.parametrize("method", ["none", "kd", "fd", "scalekd"])
def test_a_run_leaves_everything_it_must(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, method: str) -> None:
    output = tmp_path / "run"
    # The teacher's weights are random, hence the switch.
    teacher = [] if method == "none" else ["--teacher", str(teacher_file), "--no-check-teacher"]
    summary = distill(cli, data, output, "--method", method, *teacher)
    assert summary["samples"] == 24
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert (recipe["method"], recipe["epochs"], recipe["batch"]) == (method, 2, 6)
    environment = json.loads((output / "environment.json").read_text())
    assert environment["packages"]["timm"] == timm.__version__
    assert [line["step"] for line in lines(output)] == [1, 2, 2, 3, 4, 4]
    terms = {"none": [], "kd": ["kd"], "fd": ["feature"], "scalekd": ["kd", "proxy_spatial", "student_frequency"]}
    for name in ["task", *terms[method]]:
        assert f"train/{name}" in lines(output)[0]
    if method in ("fd", "scalekd"):
        assert any(name.startswith("cosine/") for name in lines(output)[0])
    assert list((output / "tensorboard").glob("events*"))
    checkpoint = torch.load(newest_checkpoint(output), weights_only=True)
    assert not any("teacher" in name for name in checkpoint["state_dict"])
    state, card = read_weights(output / "student.safetensors")
    assert card is not None
    assert (card.architecture, card.classes) == ("resnet18", CLASSES)
    timm.create_model("resnet18", num_classes=3, **TINY_CNN).load_state_dict(state)


def test_a_checkpoint_holds_each_tensor_once(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    distill(cli, data, tmp_path / "run", "--teacher", str(teacher_file), "--no-check-teacher", "--ema", "0.5")
    state = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in state} == {"model", "ema"}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_a_checkpoint_that_holds_tensors_twice_is_resumed(cli: Cli, data: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    distill(cli, data, once, "--method", "none")
    shutil.copytree(once, twice)
    newest_checkpoint(twice).unlink()
    path = newest_checkpoint(twice)  # of step 2 of 4
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]  # as an earlier revision wrote it
    state |= {name.replace("0.model.", "0.method."): tensor for name, tensor in state.items()}
    torch.save(content, path)
    (twice / "result.json").unlink()
    distill(cli, data, twice, "--method", "none", "--resume")
    assert result(twice)["sha256"] == result(once)["sha256"]


def test_the_student_learns(cli: Cli, data: Path, tmp_path: Path) -> None:
    summary = distill(cli, data, tmp_path / "run", "--method", "none", "--epochs", "8")
    assert summary["top1"] == 100, "three colours are easy"


def test_a_seed_decides_everything(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    more = ("--teacher", str(teacher_file), "--no-check-teacher", "--mixup", "0.2", "--ema", "0.5", "--clip", "1")
    one = distill(cli, data, tmp_path / "one", *more)
    two = distill(cli, data, tmp_path / "two", *more, "--workers", "2")
    other = distill(cli, data, tmp_path / "other", *more, "--seed", "1")
    assert one["sha256"] == two["sha256"], "the number of workers must not matter"
    assert one["sha256"] != other["sha256"]


def test_accumulation_gives_the_same_losses_without_batch_statistics(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    vit = (
        "--student",
        "vit_tiny_patch16_224",
        "--student-args",
        "{patch_size: 8, depth: 4, embed_dim: 24, num_heads: 2}",
    )
    more = (*vit, "--method", "kd", "--teacher", str(teacher_file), "--no-check-teacher", "--lr", "0.001")
    distill(cli, data, tmp_path / "whole", *more)
    distill(cli, data, tmp_path / "cut", *more, "--micro-batch", "2")
    whole, cut = (read_weights(tmp_path / name / "student.safetensors")[0] for name in ("whole", "cut"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, cut[name], rtol=1e-3, atol=2e-4)


def test_a_teacher_near_chance_is_an_error_that_explains_itself(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    outcome = cli("distill", "--data", data, "--output", tmp_path / "run", *TINY_RUN, "--teacher", teacher_file)
    outcome.refused("teacher", "chance is 33.3%", "scalekd adapt", "--no-check-teacher")


@pytest.mark.parametrize("method", ["kd", "fd"])
def test_no_check_teacher_does_not_measure_it(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, method: str
) -> None:
    more = ("--method", method, "--teacher", str(teacher_file), "--epochs", "1", "--no-check-teacher")
    assert distill(cli, data, tmp_path / "run", *more)["teacher_top1"] is None


def test_a_loss_that_is_not_finite_names_step_and_term_and_keeps_the_checkpoint(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    honest = functional.cross_entropy

    def breaks(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(*args, **kwargs) * (float("nan") if calls > 2 else 1)

    monkeypatch.setattr("scalekd.methods.label_loss.F.cross_entropy", breaks)
    output = tmp_path / "run"
    # With micro_batch given the loss is not tried out for its memory first.
    flags = ("--method", "none", "--micro-batch", "6")
    outcome = cli("distill", "--data", data, "--output", output, *TINY_RUN, *flags)
    outcome.refused("loss: task became nan at step 3", "lr")
    assert torch.load(newest_checkpoint(output), weights_only=True)["run"]["step"] == 2
    monkeypatch.undo()
    assert not (output / "result.json").exists()


def test_weights_that_diverged_never_replace_a_checkpoint(cli: Cli, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = (
        "--method",
        "none",
        "--optimizer",
        "sgd",
        "--lr",
        "1e38",
        "--batch",
        "12",
        "--micro-batch",
        "12",
        "--epochs",
        "4",
    )
    cli("distill", "--data", data, "--output", output, *TINY_RUN, *flags).refused("NaN or infinite", "lr")
    assert not (output / "student.safetensors").exists()
    assert not (output / "checkpoints").exists()


def test_no_git_is_no_problem(cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    distill(cli, data, tmp_path / "run", "--method", "none", "--epochs", "1")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["git"] is None


def test_all_methods_start_from_the_same_student(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    more = ("--teacher", str(teacher_file), "--no-check-teacher", "--epochs", "1")
    first: dict[str, float] = {}
    for method in ("none", "kd", "scalekd"):
        distill(cli, data, tmp_path / method, "--method", method, *more)
        first[method] = lines(tmp_path / method)[0]["train/task"]
    assert first["kd"] == pytest.approx(first["none"] / 2)
    assert first["scalekd"] == pytest.approx(first["none"] / 2)


def test_a_run_stopped_after_its_last_step_gets_its_result(cli: Cli, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = distill(cli, data, output, "--method", "none")
    (output / "result.json").unlink()
    (output / "student.safetensors").unlink()
    outcome = cli("distill", "--resume", "--output", output)
    assert outcome.code == 0, outcome.err
    again = result(output)
    assert again["top1"] == pytest.approx(first["top1"])
    assert (again["sha256"], again["steps"]) == (first["sha256"], first["steps"])


def test_a_resumed_run_must_find_the_data_it_started_with(cli: Cli, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    distill(cli, data, output, "--method", "none")
    (output / "result.json").unlink()
    (data / "train" / "red" / "0.png").rename(data / "train" / "red" / "9.png")
    cli("distill", "--resume", "--output", output).refused("training data changed", "12 images")
    (data / "train" / "red" / "9.png").rename(data / "train" / "red" / "0.png")
    assert cli("distill", "--resume", "--output", output, "--max-corrupt", "3").code == 0


def test_a_folder_with_a_run_is_refused_unless_told_otherwise(cli: Cli, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = distill(cli, data, output, "--method", "none")
    common = ("distill", "--data", data, "--output", output, *TINY_RUN, "--method", "none")
    cli(*common).refused("output", "finished run", "--overwrite")
    cli(*common, "--resume").refused("finished", "--overwrite")
    assert result(output) == first, "nothing was lost"
    (output / "result.json").unlink()
    cli(*common).refused("unfinished run")
    cli(*common, "--resume", "--lr", "0.5").refused("resume", "lr is 0.5", "started with 0.01")
    assert cli(*common, "--overwrite").code == 0
    assert result(output)["sha256"] == first["sha256"]


def test_resuming_without_a_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli("distill", "--output", tmp_path / "none", "--resume").refused("holds no run")


def test_a_run_goes_on_from_any_folder_and_with_its_teacher_elsewhere(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, here, there = tmp_path / "run", tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        shutil.copy(teacher_file, folder / "t.safetensors")
    monkeypatch.chdir(here)
    first = distill(cli, data, output, "--teacher", "t.safetensors", "--no-check-teacher")
    (output / "result.json").unlink()
    monkeypatch.chdir(tmp_path)
    resumed = cli("distill", "--output", output, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resume    from step-" in resumed.err
    assert result(output)["sha256"] == first["sha256"]
    (output / "result.json").unlink()
    (here / "t.safetensors").unlink()
    cli("distill", "--output", output, "--resume").refused("no such file", "here/t.safetensors")
    outcome = cli("distill", "--output", output, "--resume", "--teacher", there / "t.safetensors")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("when", ["in the middle of an epoch", "in a validation"])
def test_ctrl_c_writes_a_checkpoint_and_the_resumed_run_ends_the_same(
    data: Path, teacher_file: Path, tmp_path: Path, when: str
) -> None:
    """A real process, a real signal."""
    more = [
        "--teacher",
        str(teacher_file),
        "--no-check-teacher",
        "--ema",
        "0.9",
        "--mixup",
        "0.2",
        "--batch",
        "4",
        "--micro-batch",
        "4",
    ]
    more += ["--epochs", "60", "--validate-every", "30", "--workers", "1"]

    def start(output: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scalekd", "distill", "--output", str(tmp_path / output), *flags]
        # A group of its own, so that the signal reaches the loading processes too, as from a terminal.
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    settings = ["--data", str(data), *TINY_RUN, *more]
    whole = start("whole", *settings)
    stopped = start("stopped", *settings)
    log = tmp_path / "stopped" / "metrics.jsonl"
    lines_before = 46 if when == "in the middle of an epoch" else 89  # it validates after 90 steps
    while not log.exists() or log.read_text().count("\n") < lines_before:
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, err
    assert err.strip().splitlines()[-1].endswith(f"scalekd distill --resume --output {tmp_path / 'stopped'}")
    assert "Traceback" not in err
    resumed = start("stopped", "--resume")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    whole.communicate(timeout=300)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert result(tmp_path / "stopped")["sha256"] == result(tmp_path / "whole")["sha256"]


OWN = """
from functools import lru_cache
import torch
from torch import nn

@lru_cache
def grid(side):
    return torch.linspace(0, 1, side)

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.head = nn.Linear(8, num_classes)
    def forward(self, x):
        x = self.second(self.first(x))
        x = x + grid(x.shape[-1])
        assert x.isfinite().all()
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.parametrize("student", ["python:own_net.Net", "torchvision:resnet18"])
def test_students_from_elsewhere_are_trained_and_evaluated(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str
) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    maps = "first,second" if student.startswith("python") else "layer3,layer4"
    run = tmp_path / "run"
    flags = ("--student", student, "--student-args", "{}", "--student-maps", maps, "--teacher", teacher_file)
    outcome = cli("distill", "--data", data, "--output", run, *TINY_SETTINGS, *flags, "--no-check-teacher")
    assert outcome.code == 0, outcome.err
    trained = json.loads((run / "result.json").read_text())["top1"]
    assert json.loads(cli("evaluate", run, "--json").out)["top1"] == pytest.approx(trained, abs=1e-3)
    by_file = cli("evaluate", run / "student.safetensors", "--data", data)
    if student.startswith("python"):
        by_file.refused("belongs to python:own_net.Net", "pass it together with that name")
        named = cli("evaluate", student, "--weights", run / "student.safetensors", "--data", data, "--json")
        assert named.code == 0, named.err
        assert cli("inspect", "vit_tiny_patch16_224", student, "--student-maps", maps).code == 0
    else:
        assert by_file.code == 0, by_file.err


def test_what_fits_into_memory_is_part_of_the_resolved_recipe(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--data", data, *TINY_RUN, "--teacher", teacher_file, "--no-check-teacher", "--batch", "12")
    automatic = (*base, "--micro-batch", "none")
    assert cli("distill", *automatic, "--output", tmp_path / "roomy").code == 0
    module = sys.modules["scalekd.tasks.distill.micro_batch"]
    monkeypatch.setattr(module, "available_memory", lambda _device: 34 * 2**20)
    tight = cli("distill", *automatic, "--output", tmp_path / "tight")
    assert tight.code == 0, tight.err
    roomy, cut = (yaml.safe_load((tmp_path / run / "recipe.yaml").read_text()) for run in ("roomy", "tight"))
    assert roomy["micro_batch"] == 12
    assert cut["micro_batch"] < 12
    assert f"12 as {12 // cut['micro_batch']} times {cut['micro_batch']} images at once" in tight.err
    again = ("distill", "--recipe", tmp_path / "tight" / "recipe.yaml", "--output", tmp_path / "again")
    monkeypatch.undo()
    assert cli(*again).code == 0
    hashes = [json.loads((tmp_path / run / "result.json").read_text())["sha256"] for run in ("tight", "again")]
    assert hashes[0] == hashes[1], "the resolved recipe repeats the run, whatever fits now"


def test_the_last_epoch_is_always_validated(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = (*TINY_RUN, "--method", "none", "--epochs", "3", "--validate-every", "2")
    outcome = cli("distill", "--data", data, "--output", run, *flags)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/top1" in line] == [4, 6]
    assert json.loads((run / "result.json").read_text())["top1"] == lines[-1]["val/top1"]
