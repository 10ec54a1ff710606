from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import joblib
import pytest
import torch
from conftest import TINY_RUN, Cli, newest_checkpoint

from scalekd.commands import quickstart
from scalekd.commands.quickstart import _print_table, write_digits
from scalekd.data import read_splits
from scalekd.engine.learner import Learner
from scalekd.models import Classifier
from scalekd.recipes import Recipe

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "quickstart", "distill", "evaluate", "adapt", "inspect", "export", "predict", "import", "data", "transfer",
    "recipes", "report",
)  # fmt: skip


def test_help_lists_every_command_and_each_has_its_own(cli: Cli) -> None:
    overview = cli("--help").out
    for command in COMMANDS:
        assert command in overview
        outcome = cli(command, "--help")
        assert outcome.code == 0
        assert "Usage: scalekd " + command in " ".join(outcome.out.split())


def test_a_stopped_quickstart_names_its_own_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming the run that was stopped would not continue the quickstart."""
    honest = Learner.optimizer_step

    def press_ctrl_c(self: Learner, step: int) -> None:
        honest(self, step)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Learner, "optimizer_step", press_ctrl_c)
    outcome = cli("quickstart", "--output", tmp_path / "quick")
    assert outcome.code == 130, outcome.err
    assert outcome.err.strip().splitlines()[-1] == "stopped; the same command starts the quickstart from scratch"


def test_version_names_what_a_bug_report_needs(cli: Cli) -> None:
    lines = dict(line.split(" ", maxsplit=1) for line in cli("--version").out.splitlines())
    assert lines["scalekd"].startswith("0.")
    assert ("(git " in lines["scalekd"]) == (ROOT / ".git").exists()
    assert f"CUDA {torch.version.cuda}" in lines["torch"] if torch.version.cuda else "without CUDA" in lines["torch"]
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() in lines["gpus"]
    assert f"{os.cpu_count()} processors" in lines["cpu"]
    assert ("avx512_bf16" in lines["cpu"]) == torch.cpu._is_avx512_bf16_supported()
    assert {"gpus", "python", "torchvision", "timm", "numpy", "pillow", "system"} <= lines.keys()


def test_a_student_is_evaluated_the_same_by_folder_and_by_file(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *TINY_RUN, "--method", "none").code == 0
    trained = json.loads((run / "result.json").read_text())["top1"]
    by_folder = json.loads(cli("evaluate", run, "--json").out)
    by_file = json.loads(
        cli("evaluate", run / "student.safetensors", "--data", data, "--precision", "float32", "--json").out
    )
    assert by_folder["top1"] == by_file["top1"] == pytest.approx(trained, abs=1e-3)
    assert by_folder["images"] == 6
    assert json.loads(cli("evaluate", newest_checkpoint(run), "--json").out) == by_folder
    ended = cli("evaluate", run)
    assert "top1" in ended.out
    assert "not ended" not in ended.err
    (run / "result.json").unlink()
    outcome = cli("evaluate", run)
    assert (outcome.out, "has not ended; using its student as last saved" in outcome.err) == (ended.out, True)


def test_models_are_compared_by_their_frozen_features(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *TINY_RUN, "--method", "none").code == 0
    outcome = cli("evaluate", run, teacher_file, "--knn", "--linear", "--json")
    assert outcome.code == 0, outcome.err
    student, teacher = json.loads(outcome.out)["models"]
    assert (student["model"], student["features"], teacher["features"]) == (str(run), 16, 32)
    assert (student["training_images"], student["images"]) == (12, 6)
    assert all(0 <= row[kind] <= 100 for row in (student, teacher) for kind in ("knn", "linear"))
    assert json.loads(cli("evaluate", run, "--knn", "--json").out)["models"][0]["knn"] == student["knn"]
    text = cli("evaluate", run, teacher_file, "--linear").out
    assert "linear probe top1" in text
    assert "NN top1" not in text
    cli("evaluate", run, teacher_file).refused("2 models", "--knn")
    cli("evaluate", teacher_file, "--knn").refused("--data")
    cli("evaluate", teacher_file, teacher_file, "--knn", "--weights", teacher_file).refused("weights", "one model")
    own = tmp_path / "own.safetensors"
    Classifier("torchvision:mobilenet_v3_small", pretrained=False, num_classes=3, resolution=32).save(own)
    cli("evaluate", own, "--data", data, "--knn").refused("no features")


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_a_teacher_with_other_classes_is_adapted_and_then_teaches(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, mode: str
) -> None:
    for split in ("train", "val"):
        for name in ("blue", "green", "red"):
            (data / split / name).rename(data / split / f"{name}ish")
    adapted = tmp_path / "adapted"
    common = ("--data", data, "--resolution", "32", "--crop-fraction", "1", "--workers", "0", "--batch", "6")
    training = ("--epochs", "12", "--lr", "0.003") if mode == "finetune" else ()
    outcome = cli("adapt", teacher_file, *common, *training, "--mode", mode, "--output", adapted)
    assert outcome.code == 0, outcome.err
    cli("adapt", teacher_file, *common, "--mode", mode, "--output", adapted).refused("exists", "--overwrite")
    figure = json.loads(cli("evaluate", adapted, "--data", data, "--json").out)
    assert figure["top1"] > 60
    run = cli(
        "distill", "--data", data, "--output", tmp_path / "run", *TINY_RUN, "--teacher", adapted / "teacher.safetensors"
    )
    assert run.code == 0, run.err


def test_inspect_shows_the_pair_and_downloads_nothing(cli: Cli) -> None:
    pair = ("vit_tiny_patch16_224", "mobilenetv1_100")
    plan = json.loads(cli("inspect", *pair, "--json", "--heads", "4,2").out)
    previous, last = plan["places"]
    assert previous["student_map"] == {"channels": 512, "height": 14, "width": 14}
    assert last["tokens"] == {"channels": 192, "height": 14, "width": 14}
    assert (previous["heads"], last["heads"]) == (4, 2)
    assert plan["parameters"] == previous["parameters"] + last["parameters"]
    text = cli("inspect", *pair, "--no-tpp", "--views", "spatial").out
    assert "CAP_prev" not in text
    assert "learned query, spatial," in text


def test_inspect_says_what_training_would_cost(cli: Cli) -> None:
    pair = ("inspect", "vit_tiny_patch16_224", "resnet18", "--resolution", "64", "--teacher-resolution", "64")
    planned = cli(*pair, "--json", "--device", "a100", "--images", "1000", "--epochs", "36")
    assert "planning" not in planned.err, "only a terminal is told that it works"
    costs = json.loads(planned.out)["costs"]
    parts = [costs["flops"][part] for part in ("teacher", "student", "cap", "tail")]
    assert costs["flops_total"] == sum(parts) > 0
    assert costs["images_per_second"] == pytest.approx(312e12 * 0.35 / sum(parts))
    assert costs["gpu_hours"] == pytest.approx(36000 / costs["images_per_second"] / 3600)
    assert costs["student"]["parameters"] == 11_689_512
    assert 0 < costs["memory"]["weights"] < costs["memory_total"]
    text = cli(*pair, "--hours", "--device", "h100").out
    for part in ("MACs", "FLOPs", "memory", "images per second", "GPU-hours on an NVIDIA H100"):
        assert part in text


def test_inspect_plans_for_this_machine_where_no_device_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalekd.planner.this_machine.pick_device", lambda _name: torch.device("cpu"))
    monkeypatch.setattr("scalekd.planner.this_machine.available_memory", lambda _device: 3 * 2**30)
    pair = ("inspect", "vit_tiny_patch16_224", "resnet18", "--resolution", "64", "--teacher-resolution", "64")
    text = cli(*pair, "--hours", "--precision", "float32").out
    assert "of the 3 GiB of this machine's CPU" in text
    assert "\nHours on this machine's CPU" in text
    other = cli(*pair, "--json", "--peak", "2", "--images", "1000", "--epochs", "1").out
    costs = json.loads(other)["costs"]
    assert costs["images_per_second"] == pytest.approx(2e12 * 0.35 / costs["flops_total"])
    cli(*pair, "--device", "here2").refused("device", "here2", "here (this machine)")


def test_inspect_measures_beside_the_prediction(cli: Cli) -> None:
    everything = json.loads(cli("inspect", "--recipe", "quickstart", "--measure", "--json").out)
    found, lean = everything["measured"], everything["lean"]["measured"]
    assert lean["batch"] == found["batch"]
    assert lean["images_per_second"] > 0
    assert found["images_per_second"] > 0
    assert found["predicted_bytes"] > 0
    assert found["peak_bytes"] > 0


def test_the_digits_are_an_image_folder(tmp_path: Path) -> None:
    sizes = write_digits(tmp_path, labelled=50)
    assert sizes == {"teacher": 1257, "train": 50, "unlabelled": 1207, "val": 540}
    train, _ = read_splits(tmp_path, "train", "val")
    assert len(train) == 50
    assert set(Counter(train.labels.tolist()).values()) <= {4, 5, 6}
    names = {name: {path.name for path in (tmp_path / name).rglob("*.png")} for name in sizes}
    assert names["teacher"] == names["train"] | names["unlabelled"]
    assert not names["train"] & names["unlabelled"]
    assert not names["teacher"] & names["val"]
    assert all(path.is_file() for path in (tmp_path / "unlabelled").iterdir())  # no folder tells the class


def test_the_quickstarts_lines_are_not_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one is a command to copy."""
    folder = tmp_path / ("long" * 20)
    summary = {"teacher": 97.0, "images": {"teacher": 1257, "train": 50, "unlabelled": 1207, "val": 540}}
    _print_table(summary | {"students": {name: [90.0, 91.0] for name in ("none", "kd", "scalekd")}}, folder)
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"scalekd report {folder / 'scalekd-seed0'}")


def test_the_quickstart_deletes_nothing_of_others(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    cli("quickstart", "--output", tmp_path).refused("is not a quickstart's folder")
    cli("quickstart", "--output", tmp_path / "mine.txt").refused("mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart's teacher is there without training."""
    monkeypatch.setattr(quickstart, "distill", lambda *_, **__: {"top1": 90.0, "student": "student.safetensors"})


@pytest.mark.usefixtures("taught")
def test_each_student_of_the_quickstart_has_its_place(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever process ends first."""

    def train(recipe: Recipe, output: Path) -> tuple[Recipe, float]:
        return recipe, float(len(recipe.method) * 10 + recipe.seed)

    monkeypatch.setattr(quickstart, "_train_student", train)
    outcome = cli("quickstart", "--output", tmp_path / "quick", "--seeds", 2, "--json")
    assert json.loads(outcome.out)["students"] == {"none": [40, 41], "kd": [20, 21], "scalekd": [70, 71]}


@pytest.mark.usefixtures("taught")
def test_a_student_that_the_system_kills_is_one_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(recipe: Recipe, output: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(quickstart, "_train_student", die)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)  # with one, it would not be a process of its own
    cli("quickstart", "--output", tmp_path / "quick").refused("the system stopped a student's process")


@pytest.mark.slow
def test_the_quickstart_prints_its_table(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("quickstart", "--output", tmp_path / "quickstart")
    assert outcome.code == 0, outcome.err
    for row in ("teacher (ViT)", "labels only", "logit distillation (kd)", "ScaleKD"):
        assert row in outcome.out
