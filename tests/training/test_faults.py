"""What goes wrong around a run: one line, nothing lost, and the resumed run ends like an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import assert_same, ended, lines, result, start
from conftest import TINY_RUN, TINY_SETTINGS, Cli, Outcome, newest_checkpoint
from torch.nn import functional
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scalekd.data import Split
from scalekd.engine.display import Display
from scalekd.engine.signals import Stop
from scalekd.errors import UserError
from scalekd.runs import folder
from scalekd.runs.checkpoints import Checkpoints
from scalekd.tasks.distill.task import StudentLearner as Learner

SMALL = ("--method", "none", "--batch", "4", "--micro-batch", "2")
Distill = Callable[..., Outcome]


@pytest.fixture
def distill(cli: Cli, data: Path, tmp_path: Path) -> Distill:
    """`distill` into a folder of this name."""

    def call(output: str | Path, *more: str | Path) -> Outcome:
        tiny = TINY_SETTINGS if "--student" in more else TINY_RUN
        return cli("distill", "--data", data, "--output", tmp_path / output, *tiny, *SMALL, *more)

    return call


@pytest.fixture
def whole(distill: Distill, tmp_path: Path) -> Path:
    """An undisturbed run of two epochs of 3 steps with a validation each."""
    assert distill("whole").code == 0
    return tmp_path / "whole"


def at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[[], object]) -> None:
    """Do something right before one of the calls of a function, counted from 1."""
    honest, calls = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return honest(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def resume(cli: Cli, output: Path) -> Outcome:
    outcome = cli("distill", "--resume", "--output", output)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize(("batch", "step"), [(2, 3), (5, 6)], ids=["in the first validation", "in the last"])
def test_sigterm_in_a_validation_ends_it_there(
    distill: Distill, cli: Cli, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, step: int
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_call(patch, Learner, "validate", batch, twice)
        stopped = distill("run")
    assert stopped.code == 143
    assert stopped.err.strip().splitlines()[-1].startswith(f"stopped at step {step}; resume with: scalekd distill")
    assert "val/top1" not in lines(tmp_path / "run")[-1]
    assert newest_checkpoint(tmp_path / "run").name == f"step-{step:08}.ckpt"
    resume(cli, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_sigterm_before_training_ends_at_once(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_call(monkeypatch, folder, "describe_environment", 1, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = distill("run")
    assert (stopped.code, stopped.err.strip().splitlines()[-1][:26]) == (143, "stopped at once by SIGTERM")


def test_an_error_between_two_steps_leaves_a_checkpoint(
    distill: Distill, cli: Cli, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise UserError("data: gone")

    with monkeypatch.context() as patch:
        at_call(patch, Split, "open", 4 * 4 + 1 + 6, gone)  # after the first epoch, its validation and a step
        stopped = distill("run")
    stopped.refused("data: gone")
    assert "stopped after step 4; the checkpoint is of step 4" in stopped.err
    resume(cli, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_an_error_after_a_signal_is_a_stop(distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise UserError("data: gone")

    at_call(monkeypatch, Split, "open", 4 * 4 + 1 + 6, gone)
    stopped = distill("run")
    assert stopped.code == 143
    assert stopped.err.strip().splitlines()[-1] == "stopped by SIGTERM, while: data: gone"
    assert newest_checkpoint(tmp_path / "run").name == "step-00000004.ckpt"


def test_signals_that_are_ignored_stay_so_and_a_thread_takes_none() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGINT, former)

    def listens() -> bool:
        with Stop() as stop:
            return stop.asked is None

    with ThreadPoolExecutor() as pool:
        assert pool.submit(listens).result()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    distill: Distill, cli: Cli, whole: Path, tmp_path: Path
) -> None:
    assert distill("run").code == 0
    run = tmp_path / "run"
    (run / "result.json").unlink()
    newest = newest_checkpoint(run)
    newest.write_bytes(newest.read_bytes()[:-100])
    again = resume(cli, run)
    assert f"{newest} cannot be read" in again.err
    assert "resuming from step-00000003.ckpt" in again.err
    assert_same(run, whole)
    assert [path.name for path in Checkpoints(run / "checkpoints").files] == ["step-00000003.ckpt", newest.name]
    (run / "checkpoints" / "step-00000001.ckpt.unreadable").touch()
    Checkpoints(run / "checkpoints").prune(2)
    assert [path.name for path in (run / "checkpoints").glob("*.unreadable")] == [f"{newest.name}.unreadable"]
    (run / "result.json").unlink()
    for path in Checkpoints(run / "checkpoints").files:
        path.write_bytes(b"")
    cli("distill", "--resume", "--output", run).refused(newest.name, "cannot be read", "nor can the 1 before it")


def test_no_byte_of_a_checkpoint_changes_unnoticed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    content: dict[str, Any] = {"run": {"step": 1}, "state": {"a": torch.arange(1000.0), "b": torch.ones(3)}}
    checkpoints.save(content, checkpoints.path(1))
    path, draw = checkpoints.path(1), random.Random(0)
    honest = path.read_bytes()
    noticed = 0
    for _ in range(300):
        flipped = bytearray(honest)
        flipped[draw.randrange(len(honest))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            checkpoints.newest(print)
        except UserError:
            noticed += 1
            continue
        loaded = torch.load(path, weights_only=True)
        assert loaded["run"] == content["run"]
        assert all(torch.equal(loaded["state"][name], value) for name, value in content["state"].items())
    assert noticed > 200


def test_checkpoints_are_kept_as_many_as_asked_for(distill: Distill, tmp_path: Path) -> None:
    assert distill("run", "--epochs", "4", "--keep", "3").code == 0
    names = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").files]
    assert names == ["step-00000006.ckpt", "step-00000009.ckpt", "step-00000012.ckpt"]


def test_a_folder_is_one_runs_at_a_time_and_no_longer_than_that_lives(
    distill: Distill, cli: Cli, data: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    long = ("--epochs", "4000", "--validate-every", "4000", "--workers", "1")
    child = start(log, "distill", "--data", data, "--output", run, *TINY_RUN, *SMALL, *long)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    began = time.monotonic()
    cli("distill", "--resume", "--output", run).refused("is in use by", f"process {child} on")
    assert time.monotonic() - began < 5
    group = ("--student", "test_resnet", "--student", "run")
    distill(tmp_path, *group).refused("is in use by")  # one of its folders is
    os.kill(child, signal.SIGKILL)  # its data workers live on for seconds
    assert ended(child) == -signal.SIGKILL
    assert distill("run", "--overwrite").code == 0


def test_a_file_system_without_locks_is_warned_of(distill: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    outcome = distill("run", "--epochs", "1")
    assert outcome.code == 0
    assert outcome.err.count("cannot be locked") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 1):
            with suppress(OSError):
                while filler.write(bytes(size)):
                    pass


@pytest.mark.parametrize(
    ("owner", "name", "call", "file"),
    [
        (Checkpoints, "save", 2, "step-00000006.ckpt"),
        (Learner, "save", 2, "student.safetensors"),
        (sys.modules["scalekd.tasks.distill.result"], "write_json", 1, "result.json"),
        (folder, "write_json", 1, "inputs.json"),
    ],
    ids=["checkpoint", "weights", "result", "inputs"],
)
def test_a_full_disk_loses_nothing(
    distill: Distill, cli: Cli, whole: Path, disk: Path, owner: Any, name: str, call: int, file: str
) -> None:
    run = disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, owner, name, call, partial(fill, disk))
        distill(run).refused(file, "No space left")
    (disk / "filler").unlink()
    if file == "inputs.json":
        assert not (run / "recipe.yaml").exists(), "nothing to resume"
        assert distill(run).code == 0
    else:
        assert newest_checkpoint(run)
        resume(cli, run)
    assert_same(run, whole)


def test_a_full_disk_ends_the_log_and_the_run_begins_anew(
    distill: Distill, cli: Cli, tmp_path: Path, disk: Path
) -> None:
    long = ("--epochs", "40", "--validate-every", "40")
    assert distill("whole", *long).code == 0
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Learner, "compute_loss", 20, partial(fill, disk))
        stopped = distill(disk / "run", *long)
    stopped.refused("log: ", str(disk / "run"), "No space left")
    assert "no checkpoint was written" in stopped.err
    (disk / "filler").unlink()
    resume(cli, disk / "run")
    assert_same(disk / "run", tmp_path / "whole")


def test_a_read_only_folder_is_refused(distill: Distill, cli: Cli, disk: Path) -> None:
    assert distill(disk / "run").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    distill(disk / "new").refused(str(disk / "new"), "Read-only")
    distill(disk / "run", "--overwrite").refused(str(disk / "run"), "Read-only")
    cli("distill", "--resume", "--output", disk / "run").refused(str(disk / "run"), "Read-only")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader looks after its workers ten times a second instead of every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def kill_workers() -> None:
    """As the system does that is out of memory."""
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid or 0, signal.SIGKILL)


@pytest.mark.parametrize("during", ["compute_loss", "validate"])
def test_workers_that_are_killed_are_replaced_and_the_run_ends_the_same(
    distill: Distill, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, during: str
) -> None:
    at_call(monkeypatch, Learner, during, 2, kill_workers)
    outcome = distill("run", "--workers", "2")
    assert outcome.code == 0, outcome.err
    assert "warning: a process that loads images was killed; new ones continue from the same batch" in outcome.err
    assert_same(tmp_path / "run", whole)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "torch's would raise in mid-step"


def test_workers_that_always_die_end_the_run(
    distill: Distill, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    here, honest = os.getpid(), Split.open

    def dies(self: Split, index: int, max_pixels: int) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, index, max_pixels)

    monkeypatch.setattr(Split, "open", dies)
    outcome = distill("run", "--workers", "1")
    outcome.refused("workers: a process that loads images was killed", "memory")
    assert outcome.err.count("new ones continue") == 3


def breaks(monkeypatch: pytest.MonkeyPatch, *when: int) -> None:
    """Make the loss NaN at these of its calls, counted from 1."""
    honest, calls = functional.cross_entropy, 0

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(*args, **kwargs) * (float("nan") if calls in when else 1)

    monkeypatch.setattr("scalekd.methods.label_loss.F.cross_entropy", loss)


SKIPS = ("--batch", "12", "--micro-batch", "6", "--nonfinite", "skip", "--epochs", "3", "--ema", "0.5", "--clip", "1")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
@pytest.mark.parametrize("students", [("test_vit",), ("test_resnet", "test_vit")], ids=["one", "two"])
def test_a_step_without_a_finite_gradient_changes_nothing(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, students: tuple[str, ...]
) -> None:
    named = [word for student in students for word in ("--student", student)]
    second = len(students) * 2  # losses a step; the first micro-batch of the second step is spoilt, for all
    breaks(monkeypatch, *range(second + 1, second + len(students) + 1))
    flags = (*SKIPS, "--optimizer", optimizer, *named, "--lr", "0.001")
    outcome = distill("run", *flags, "--keep", "3")
    assert outcome.code == 0, outcome.err
    files = Checkpoints(tmp_path / "run" / "checkpoints").files
    first, skipped, last = (torch.load(path, weights_only=True)["state_dict"] for path in files)
    assert [name for name, value in first.items() if not torch.equal(value, skipped[name])] == []
    assert not all(torch.equal(value, last[name]) for name, value in first.items() if value.is_floating_point())
    for student in students if len(students) > 1 else ("",):
        run = tmp_path / "run" / student
        assert (result(run)["skipped_steps"], result(run)["steps"]) == (1, 3)
        assert {"step": 2, "skipped_steps": 1} in lines(run)
        assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_ten_steps_in_a_row_without_a_finite_gradient_end_the_run_also_a_resumed_one(
    distill: Distill, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, *range(13, 1000))
    at_call(monkeypatch, Learner, "compute_loss", 23, lambda: signal.raise_signal(signal.SIGINT))
    flags = ("--nonfinite", "skip", "--epochs", "20")
    assert distill("run", *flags).code == 130
    stopped = cli("distill", "--resume", "--output", tmp_path / "run")
    stopped.refused("10 steps in a row", "the last of step 16", "checkpoint is kept")


def test_unreadable_images_met_before_the_stop_count_after_it(
    distill: Distill, cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = data / "train" / "red" / "0.png"
    honest = bad.read_bytes()
    bad.write_bytes(b"no image")
    with monkeypatch.context() as patch:
        at_call(patch, Learner, "compute_loss", 8, lambda: signal.raise_signal(signal.SIGTERM))
        assert distill("run", "--max-corrupt", "1").code == 143
    bad.write_bytes(honest)
    (data / "val" / "red" / "1.png").write_bytes(b"no image")
    for _ in range(2):
        cli("distill", "--resume", "--output", tmp_path / "run").refused("2 unreadable image(s)", "max_corrupt (now 1)")
    assert cli("distill", "--resume", "--output", tmp_path / "run", "--max-corrupt", "2").code == 0
    assert len(result(tmp_path / "run")["corrupt_images"]) == 2


def test_a_log_that_fails_before_a_validation_loses_nothing(
    distill: Distill, cli: Cli, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise UserError("log: full")

    with monkeypatch.context() as patch:
        at_call(patch, Display, "lap", 1, full)
        distill("run").refused("log: full")
    resume(cli, tmp_path / "run")
    assert lines(tmp_path / "run")[:3] == lines(whole)[:3]
    assert result(tmp_path / "run") == result(whole)


def test_files_of_others_are_kept(distill: Distill, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("mine")
    distill("run").refused("metrics.jsonl", "does not belong to a run")
    (run / "metrics.jsonl").unlink()
    (run / "tensorboard" / "events.mine").write_text("mine")
    assert distill("run").code == 0
    assert (run / "tensorboard" / "events.mine").read_text() == "mine"


def test_no_clock_that_jumps_matters(
    distill: Distill, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, draw = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: max(0, honest() + draw.choice((-1e6, 0, 1e6))))
    assert distill("run", "--checkpoint-minutes", "100").code == 0
    assert_same(tmp_path / "run", whole)
    names = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").files]
    assert names == ["step-00000003.ckpt", "step-00000006.ckpt"], "no minutes have passed"
