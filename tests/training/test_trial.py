"""What fails in training mode only is told before a run begins, and the trial leaves no trace."""

from __future__ import annotations

import os
import random
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_KEYS, TINY_SETTINGS, Cli
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher
from scalekd.child import can_fork
from scalekd.errors import Interrupted, UserError
from scalekd.methods.none import Supervised
from scalekd.models.memory_format import prepare
from scalekd.recipes import load
from scalekd.runs.group import RunGroup
from scalekd.tasks.distill import trial
from scalekd.tasks.distill.task import StudentLearner as Learner
from scalekd.tasks.distill.trial import random_losses, try_training

CPU = torch.device("cpu")
forks = pytest.mark.skipif(not can_fork(CPU), reason="this machine's processes cannot be copied")


class Net(nn.Module):
    """A model of one's own with a fault that shows in training mode only."""

    def __init__(self, fault: str = "", num_classes: int = 3) -> None:
        super().__init__()
        self.fault, self.calls = fault, 0
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 2, 2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        features = self.first(images)
        logits = self.head(self.second(self.norm(features).relu()).mean((2, 3)))
        return self.spoil(logits) if self.training else logits

    def spoil(self, logits: Tensor) -> Any:
        channels_last = not self.first.weight.is_contiguous()
        match self.fault:
            case "KeyError":
                logits = dict[str, Tensor]()["aux"]
            case "RuntimeError":
                raise RuntimeError("no such size\nin line 7")
            case "in place":
                grown = logits.exp()
                logits = grown * 1
                grown.add_(1)
            case "backward":
                logits.register_hook(lambda _: dict[str, Tensor]()["gradient"])  # type: ignore[no-untyped-call]
            case "end":
                os._exit(7)
            case "end in channels last" if channels_last:
                os.abort()
            case "multiple of four" if len(logits) % 4:
                raise ValueError("a multiple of four is needed")
        others = {"dict": {"out": logits}, "tuple": (logits, logits), "no gradient": logits.detach()}
        return others.get(self.fault, logits[:, :2] if self.fault == "width" else logits)


class Faulty(Net):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__("RuntimeError", num_classes)


def attempt(fault: str = "", *, at_once: int = 6, together: int = 6, **keys: Any) -> tuple[Supervised, list[str]]:
    """A pair that was tried, and what was said."""
    torch.manual_seed(0)
    method = Supervised(Student(Net(fault), maps=("first", "second"), resolution=32))
    said: list[str] = []
    prepare(method, CPU, torch.float32, channels_last=True)
    recipe = load(None, TINY_KEYS | {"method": "none"} | keys)
    kinds: dict[str, Any] = {"batchnorm": nullcontext(), "dtype": torch.float32, "say": said.append}
    try_training(method, recipe, at_once=at_once, together=together, **kinds)
    return method, said


FAULTS = {
    "KeyError": "cannot be trained on images [6, 3, 32, 32]: KeyError: 'aux'",
    "RuntimeError": "cannot be trained on images [6, 3, 32, 32]: RuntimeError: no such size",
    "dict": "in training mode must give logits [B, K], not dict",
    "tuple": "in training mode must give logits [B, K], not tuple",
    "in place": "modified by an inplace operation",
    "backward": "cannot be trained on images [6, 3, 32, 32]: KeyError: 'gradient'",
    "no gradient": "does not require grad",
    "width": "in training mode gives [6, 2] as logits, not [6, 3]",
}


@pytest.mark.parametrize("forking", [pytest.param(True, marks=forks), False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_training_mode_is_one_line(fault: str, forking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "can_fork", lambda _: forking)
    with pytest.raises(UserError) as told:
        attempt(fault)
    assert str(told.value).startswith("student: Net ")
    assert FAULTS[fault] in str(told.value)


def test_a_student_that_no_gradient_reaches_is_refused_though_projectors_get_one(teacher: Teacher) -> None:
    class Frozen(Net):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images).detach()

    student = Student(Frozen(), maps=("first", "second"), resolution=32)
    student.requires_grad_(False)
    method = ScaleKD(teacher, student)
    recipe = load(None, TINY_KEYS | {"teacher": "t"})
    with pytest.raises(UserError, match="no gradient reaches any of its parameters"):
        try_training(
            method, recipe, at_once=2, together=2, batchnorm=nullcontext(), dtype=torch.float32, say=lambda _: None
        )


@pytest.mark.parametrize("forking", [pytest.param(True, marks=forks), False])
def test_the_trial_leaves_no_trace(forking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "can_fork", lambda _: forking)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # type: ignore[index]
    torch.manual_seed(0)
    untried = Supervised(Student(Net(), maps=("first", "second"), resolution=32))
    now = torch.random.get_rng_state()
    method, said = attempt()
    assert not said
    assert torch.equal(torch.random.get_rng_state(), now)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # type: ignore[index]
    for (name, one), (_, other) in zip(method.state_dict().items(), untried.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert all(parameter.grad is None for parameter in method.parameters())
    assert method.student.model.calls == untried.student.model.calls  # type: ignore[attr-defined]
    assert all(part.training for part in method.student.model.modules())  # type: ignore[attr-defined]


def test_random_losses_are_seeded_and_leave_the_random_state(teacher: Teacher, student: Student) -> None:
    method, recipe = ScaleKD(teacher, student), load(None, TINY_KEYS | {"teacher": "t"})
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = random_losses(method, recipe, torch.float32).total
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(random_losses(method, recipe, torch.float32).total, one)


@forks
def test_a_student_that_ends_its_process_is_told_of() -> None:
    with pytest.raises(UserError, match=r"Net in float32 ends its process on this machine \(exit code 7\).*bf16"):
        attempt("end")


@forks
def test_a_layout_that_ends_the_process_is_given_up() -> None:
    method, said = attempt("end in channels last")
    assert method.student.model.first.weight.is_contiguous()  # type: ignore[attr-defined]
    (line,) = said
    assert "Net in the channels-last layout ends its process on this machine (signal 6" in line
    assert "contiguous layout" in line


def test_a_student_that_needs_more_images_than_two_is_tried_on_those_of_the_run() -> None:
    attempt("multiple of four", at_once=8)
    with pytest.raises(UserError, match=r"\[6, 3, 32, 32\]: ValueError: a multiple of four is needed"):
        attempt("multiple of four", at_once=6)


@pytest.mark.parametrize(("settings", "images"), [((), 1), (("--batchnorm-over", "1", "--batch", "2"), 2)])
def test_batch_norm_on_one_value_names_the_mend(
    cli: Cli, data: Path, tmp_path: Path, settings: tuple[str, ...], images: int
) -> None:
    own = ("--student", "resnet10t", "--method", "none", "--batch", "1", "--micro-batch", "none", *settings)
    refused = cli("distill", "--data", data, "--output", tmp_path / "out" / "run", *TINY_SETTINGS, *own)
    refused.refused("resnet10t", f"[{images}, 3, 32, 32]", "more than 1 value per channel", "set batch")
    assert not (tmp_path / "out").exists()


def test_a_projectors_batch_norm_on_one_value_names_the_mend(
    cli: Cli, data: Path, tmp_path: Path, teacher_file: Path
) -> None:
    pair = ("--student", "test_resnet", "--teacher", teacher_file)  # the student's maps have one position
    own = (*TINY_SETTINGS, *pair, "--feature-share", "0.25", "--no-check-teacher")
    refused = cli("distill", "--data", data, "--output", tmp_path / "out" / "run", *own)
    refused.refused("projectors of scalekd", "more than 1 value per channel", "raise feature_share or batch")
    assert not (tmp_path / "out").exists()


def test_an_auxiliary_head_that_small_images_do_not_reach(cli: Cli, data: Path, tmp_path: Path) -> None:
    own = ("--student", "torchvision:inception_v3", "--student-maps", "Mixed_6e,Mixed_7c", "--method", "none")
    small = (*TINY_SETTINGS, "--resolution", "80")
    refused = cli("distill", "--data", data, "--output", tmp_path / "run", *small, *own)
    refused.refused("torchvision:inception_v3 cannot be trained on images", "aux_logits: false")
    assert not (tmp_path / "run").exists()


def test_of_several_students_the_one_at_fault_is_named(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    both = ("--student", "python:test_trial.Net", "--student", "python:test_trial.Faulty")
    own = (*both, "--student-maps", "first,second", "--method", "none", "--lr", "0.01")
    refused = cli("distill", "--data", data, "--output", tmp_path / "out", *TINY_SETTINGS, *own)
    refused.refused("python:test_trial.Faulty cannot be trained", "images [6, 3, 32, 32]: RuntimeError: no such size")
    assert not (tmp_path / "out").exists()


LATER = {"several": ("--student", "test_resnet"), "one": ()}


@pytest.mark.parametrize("beside", LATER)
@pytest.mark.parametrize("there", [False, True])
def test_what_fails_before_the_first_checkpoint_leaves_nothing(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str, there: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("loss: it fails")

    monkeypatch.setattr(Learner, "compute_loss", fail)
    output = tmp_path / "out" / "run"
    if there:
        output.mkdir(parents=True)
        (output / "notes.txt").touch()
    own = ("--student", "test_vit", *LATER[beside], "--method", "none")
    cli("distill", "--data", data, "--output", output, *TINY_SETTINGS, *own).refused("loss: it fails")
    assert ([file.name for file in output.iterdir()] if there else output.parent.exists()) == (
        ["notes.txt"] if there else False
    )


def test_the_check_takes_as_many_images_as_the_run_and_tells_what_ends_the_process(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ("--method", "none", "--resolution", "32", "--precision", "float32", "--batch", "1")
    cli("distill", "--check", "--student", "resnet10t", *alone).refused("[1, 3, 32, 32]", "set batch")
    if can_fork(CPU):
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        own = ("--student", "python:test_trial.Net", "--student-maps", "first,second", "--student-args")
        ends = cli("distill", "--check", *alone, *own, "{fault: end}")
        ends.refused("python:test_trial.Net in float32 ends its process on this machine (exit code 7)")
        spared = cli("distill", "--check", *alone, *own, "{fault: end in channels last}")
        assert spared.code == 0, spared.err
        assert "trains in the contiguous layout instead" in spared.err


@pytest.mark.parametrize("students", [(), ("test_vit", "test_resnet")])
@pytest.mark.parametrize(
    ("error", "kept"),
    [(RuntimeError("a bug"), False), (OSError(28, "full"), False), (Interrupted("stopped", signal.SIGINT), True)],
)
def test_a_start_that_failed_is_taken_back_and_one_that_was_stopped_is_not(
    tmp_path: Path, students: tuple[str, ...], error: Exception, kept: bool
) -> None:
    group = RunGroup(tmp_path / "out" / "run", students)
    recipes = [load(None, TINY_KEYS) for _ in group.runs]

    def start() -> None:
        with group.claimed(print, resume=False):
            group.prepare(recipes, [{} for _ in recipes], resume=False)
            assert all(run.exists for run in group.runs)
            raise error

    with pytest.raises(type(error)):
        start()
    assert (tmp_path / "out").exists() is kept
    if kept:
        with pytest.raises(RuntimeError), group.claimed(print, resume=True):
            raise RuntimeError("while resuming")
        assert all(run.exists for run in group.runs)
