"""Several students beside each other: each as it would be alone, with one forward of the teacher a batch."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY_SETTINGS, Cli, Outcome, newest_checkpoint
from torch.nn import functional

from scalekd.methods.base import Method
from scalekd.models import Teacher
from scalekd.recipes import Recipe, dump
from scalekd.tasks.distill.task import StudentLearner as Learner

STUDENTS = ("test_resnet", "test_vit")  # timm's, of 0.4 M parameters
DROPS = ("--student-args", "{drop_path_rate: 0.5}")
Distill = Callable[..., Outcome]


@pytest.fixture
def distill(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> Distill:
    """`distill` with these students into a folder of this name."""

    def call(students: tuple[str, ...], output: str, *more: str | Path) -> Outcome:
        named = [word for student in students for word in ("--student", student)]
        teacher = ("--teacher", teacher_file, "--no-check-teacher")
        return cli("distill", "--data", data, "--output", tmp_path / output, *TINY_SETTINGS, *teacher, *named, *more)

    return call


def lines(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "images_per_second" not in line]


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


HARD = ("--batch", "4", "--micro-batch", "2", "--mixup", "0.2", "--ema", "0.5", "--clip", "0.5", *DROPS)
LAMB = ("--optimizer", "lamb", "--precision", "bf16", "--micro-batch", "6", "--schedule", "step", "--milestones", "1")


@pytest.mark.parametrize("settings", [HARD, LAMB], ids=["accumulate, mixup, ema, clip, drop path", "lamb, bf16, steps"])
def test_each_student_is_as_it_would_be_alone_with_one_teacher_forward(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    forwards = 0
    honest = Teacher.forward

    def counted(self: Teacher, images: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += torch.is_grad_enabled()  # in training; each student's pictures ask it once too
        return honest(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    outcome = distill(STUDENTS, "group", *settings)
    assert outcome.code == 0, outcome.err
    in_group, forwards = forwards, 0
    for student in STUDENTS:
        assert distill((student,), student, *settings).code == 0
        one, alone = tmp_path / "group" / student, tmp_path / student
        assert lines(one) == lines(alone)
        assert result(one)["sha256"] == result(alone)["sha256"]
        assert result(one).pop("group") == list(STUDENTS)
        assert {k: result(one)[k] for k in ("top1", "steps", "samples")} == {
            k: result(alone)[k] for k in ("top1", "steps", "samples")
        }
        assert (one / "recipe.yaml").read_text() == (alone / "recipe.yaml").read_text()
        assert f"{student}: top1 {result(one)['top1']:.2f}%, loss " in outcome.err
    assert in_group == forwards / len(STUDENTS)


def test_a_member_is_evaluated_like_any_run(distill: Distill, cli: Cli, tmp_path: Path) -> None:
    assert distill(STUDENTS, "group", "--epochs", "1").code == 0
    member = tmp_path / "group" / "test_vit"
    for name in ("environment.json", "inputs.json", "student.safetensors"):
        assert (member / name).is_file()
    assert list((member / "tensorboard").glob("events*"))
    evaluated = json.loads(cli("evaluate", member, "--json").out)
    assert evaluated["top1"] == pytest.approx(result(member)["top1"], abs=1e-3)
    cli("evaluate", tmp_path / "group").refused("group of runs", "one of them")


def test_an_interrupted_group_goes_on_together_and_ends_the_same(
    distill: Distill, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill(STUDENTS, "whole", *HARD).code == 0
    calls = 0
    honest = Learner.compute_loss

    def interrupted(self: Learner, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 14:  # the second student in the first half of the fourth step, the first of the second epoch
            signal.raise_signal(signal.SIGINT)
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "compute_loss", interrupted)
    stopped = distill(STUDENTS, "stopped run", *HARD)
    monkeypatch.undo()
    group = tmp_path / "stopped run"
    assert stopped.code == 130
    assert (
        stopped.err.strip()
        .splitlines()[-1]
        .endswith(f"stopped at step 4; resume with: scalekd distill --resume --output '{group}'")
    )
    cli("distill", "--resume", "--output", group / "test_vit").refused(
        "one of a group", f"--resume to --output {group}"
    )
    distill(("test_resnet",), "stopped run", *HARD, "--resume").refused("group of runs")
    distill((*STUDENTS, "test_vit2"), "stopped run", *HARD, "--resume").refused("test_vit2", "remove --student")
    cli("distill", "--resume", "--output", group, "--lr", "1").refused("lr is 1.0")
    resumed = cli("distill", "--resume", "--output", group, "--json")
    assert resumed.code == 0, resumed.err
    for student in STUDENTS:
        assert lines(group / student) == lines(tmp_path / "whole" / student)
        assert json.loads(resumed.out)[student]["sha256"] == result(tmp_path / "whole" / student)["sha256"]
    cli("distill", "--resume", "--output", group).refused("are finished", "--overwrite")


def test_a_loss_that_is_not_finite_names_the_student_and_keeps_the_checkpoint_of_all(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    honest = functional.cross_entropy

    def breaks(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(*args, **kwargs) * (float("nan") if calls > 5 else 1)

    monkeypatch.setattr("scalekd.methods.label_loss.F.cross_entropy", breaks)
    outcome = distill(STUDENTS, "group", "--method", "none", "--micro-batch", "6")
    outcome.refused("student test_vit: loss: task became nan at step 3", "checkpoint is kept")
    checkpoint = torch.load(newest_checkpoint(tmp_path / "group"), weights_only=True)
    assert checkpoint["run"]["step"] == 2


def test_what_fits_is_what_fits_beside_the_others(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["scalekd.tasks.distill.micro_batch"]
    budgets: dict[str, int] = {}
    held: dict[str, int] = {}

    def largest(method: Method, *, budget_bytes: int, **_: Any) -> tuple[int, None]:
        name = method.student.name  # type: ignore[attr-defined]
        budgets[name] = budget_bytes
        held[name] = module.held_memory(method, optimizer="adamw", ema=False)
        return {"test_resnet": 6, "test_vit": 3}[name], None

    monkeypatch.setattr(module, "largest_batch", largest)
    monkeypatch.setattr(module, "available_memory", lambda _device: 2**30)
    assert distill(STUDENTS, "group", "--epochs", "1", "--micro-batch", "none").code == 0
    assert budgets["test_resnet"] + held["test_vit"] == round(module.USABLE * 2**30)
    for student in STUDENTS:
        assert yaml.safe_load((tmp_path / "group" / student / "recipe.yaml").read_text())["micro_batch"] == 3


def test_a_folder_with_runs_is_kept_unless_told_otherwise(distill: Distill, tmp_path: Path) -> None:
    short = ("--epochs", "1", "--method", "none")
    assert distill(STUDENTS, "group", *short).code == 0
    distill(STUDENTS, "group", *short).refused("group of runs", "--overwrite")
    distill(("test_vit",), "group", *short).refused("group of runs", "--overwrite")
    distill(("test_vit",), "group/test_vit", *short).refused("finished run", "--overwrite")
    assert distill(("test_vit",), "group", *short, "--overwrite").code == 0
    assert not (tmp_path / "group" / "test_resnet" / "result.json").exists()
    distill(STUDENTS, "group", *short).refused("finished run", "--overwrite")
    distill(STUDENTS, "group", *short, "--resume").refused("no group of runs")


@pytest.mark.parametrize("recipes", [0, 1])
def test_a_group_whose_start_was_broken_off_starts_anew(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipes: int
) -> None:
    short, written = ("--epochs", "1", "--method", "none"), 0

    def broken_off(recipe: Recipe) -> str:
        nonlocal written
        if written == recipes:
            signal.raise_signal(signal.SIGTERM)
        written += 1
        return dump(recipe)

    with monkeypatch.context() as patch:
        patch.setattr("scalekd.runs.folder.dump", broken_off)
        assert distill(STUDENTS, "group", *short).code == 143
    assert len(list((tmp_path / "group").glob("*/recipe.yaml"))) == recipes
    outcome = distill(STUDENTS, "group", *short, "--auto-resume")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "group").glob("*/result.json"))) == 2


def test_wrong_students_are_named(distill: Distill, cli: Cli, tmp_path: Path) -> None:
    distill(("test_vit", "test_vit"), "run").refused("student", "'test_vit' is specified twice")
    distill(("python:net-a", "python:net:a"), "run").refused("share the folder 'python-net-a'")
    distill(("test_vit", "checkpoints"), "run").refused("'checkpoints' cannot be used as a folder name")
    distill(("test_vit", "resnet51"), "run").refused("student resnet51", "did you mean 'resnet")
    distill(STUDENTS, "run", "--student-args", "{layers: [1, 1, 1, 1]}").refused("student test_vit", "layers")
    distill(STUDENTS, "run", "--student-maps", "0,5").refused("student test_resnet", "no map 5")
    cli("distill", "--check", "--student", "test_vit", "--student", "test_resnet").refused("one student at a time")
