"""Several processes: real ones, started by torch's launcher; what they compute is what one computes."""

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
from conftest import TINY_STUDENT, Cli, newest_checkpoint, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalekd.data import EvaluationOrder, TrainingStream
from scalekd.models.weights import read_weights

# 3 steps an epoch, 6 in all: enough for a learning rate that is wrong by a hundredth to move the losses by 1e-4, too
# few for training to amplify rounding beyond 1e-6.
SETTINGS = (
    *("--resolution", "32", "--crop-fraction", "1", "--workers", "0", "--log-every", "1", "--precision", "float32"),
    *("--batch", "8", "--epochs", "2", "--validate-every", "2", "--warmup-epochs", "0", "--no-check-teacher"),
    *("--optimizer", "sgd", "--lr", "0.02", "--clip", "1"),
)
ADAMW = ("--optimizer", "adamw", "--lr", "0.0002")
# AdamW moves a weight whose gradient is all rounding by its whole rate: only the mean over a tensor can be compared.
# Lost moments, or weight decay of what has no gradient, change it by half of the rate a step.
ADAMW_MEAN = 2e-5
VIT = (
    *("--student", "vit_tiny_patch16_224", "--stem-norm", "layernorm2d"),
    *("--student-args", "{patch_size: 8, depth: 4, embed_dim: 24, num_heads: 2}"),
)
HEADLESS = (
    *(*VIT[:2], *VIT[4:], "--labels", "none", "--logit-weight", "0", "--epochs", "1", "--validate-every", "1"),
    *("--batch", "16", *ADAMW, "--weight-decay", "0.5", "--no-decay", ""),
)
SHARDED = (*VIT, "--strategy", "fsdp")
STOPPED = (
    *("--epochs", "2", "--validate-every", "1", *ADAMW, "--ema", "0.9", "--nonfinite", "skip", "--mixup", "0.2"),
)
# What is trained by 2 processes, each with 4 images at once.
RUNS = {
    "groups": (*TINY_STUDENT, "--batchnorm-over", "4"),
    "all": (*TINY_STUDENT, "--batchnorm-over", "all", "--lr", "0.005"),
    "vit": VIT,
    "headless": HEADLESS,
    "sharded": SHARDED,
    "sharded headless": (*HEADLESS, *SHARDED[-2:]),
    "stopped": (*SHARDED, *STOPPED),
}
SCRIPT = """
import json, shutil, sys
from pathlib import Path
from scalekd.cli.main import run
from scalekd.engine.loop import Loop
from scalekd.engine.processes import joined
from scalekd.engine.sharding import own_part

honest, trained = Loop.run, []
def train(self, *args):
    trained.append(self.task.learners[0])
    return honest(self, *args)
Loop.run = train

def kill(run):  # a finished run before its last checkpoint
    (run / "result.json").unlink()
    sorted((run / "checkpoints").glob("step-*.ckpt"))[-1].unlink()

def share(parameters):
    parameters = list(parameters)
    return sum(own_part(p).numel() for p in parameters) / sum(p.numel() for p in parameters)

with joined() as processes:
    for arguments in json.loads(sys.argv[1]):
        if "--resume" in arguments and processes.first:
            stopped = Path(arguments[arguments.index("--output") + 1])
            shutil.copytree(stopped, stopped.with_name("kept"))
            kill(stopped)
        processes.wait()
        sys.argv[1:] = arguments
        try:
            run()
        except SystemExit as stop:
            assert not stop.code, stop.code
        learner = trained.pop()
        method, ddp = learner.model, learner.called
        if ddp is method:
            output = Path(arguments[arguments.index("--output") + 1])
            shares = [share(module.parameters()) for module in (method.student, method, method.teacher)]
            (output / f"shares-{processes.rank}.json").write_text(json.dumps(shares))
            continue
        shared = {id(parameter) for parameter in ddp.parameters()} | {id(buffer) for buffer in ddp.buffers()}
        teacher = [*method.teacher.parameters(), *method.teacher.buffers()]
        assert teacher
        assert not any(id(tensor) in shared or tensor.requires_grad for tensor in teacher)
        assert not ddp.find_unused_parameters
"""


def start(*command: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def lines(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "images_per_second" not in line]


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def furthest(one: Path, other: Path) -> float:
    """The largest relative difference of two loss curves, which have the same steps and validations."""
    pairs = list(zip(lines(one), lines(other), strict=True))
    assert [a["step"] for a, _ in pairs] == [b["step"] for _, b in pairs]
    assert [a.get("val/top1") for a, _ in pairs] == [b.get("val/top1") for _, b in pairs]
    losses = [(a["train/loss"], b["train/loss"]) for a, b in pairs if "train/loss" in a]
    return max(abs(a - b) / abs(a) for a, b in losses)


def floats(run: Path) -> dict[str, torch.Tensor]:
    """Weights and running statistics; how many forwards those took is counted, and may differ."""
    return {k: v for k, v in read_weights(run / "student.safetensors")[0].items() if v.is_floating_point()}


def assert_close(one: Path, other: Path) -> None:
    """Each weight of two runs."""
    others = floats(other)
    for name, tensor in floats(one).items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-5, msg=name)


def assert_close_in_the_mean(one: Path, other: Path) -> None:
    """Each tensor of two runs of AdamW."""
    others = floats(other)
    for name, tensor in floats(one).items():
        assert (tensor - others[name]).abs().mean() < ADAMW_MEAN, name


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images, and 9 for validation: the processes have 5 and 4 of them."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 8, seed=0)
    write_images(folder / "val", 3, seed=1)
    return folder


@pytest.fixture(scope="module")
def together(images: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `RUNS` by the same 2 processes of torchrun, one after the other."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "train.py").write_text(SCRIPT)
    common = ("distill", "--data", str(images), "--teacher", str(teacher_file), *SETTINGS, "--micro-batch", "4")
    commands = [[*common, "--output", str(folder / name), *more] for name, more in RUNS.items()]
    commands.append([*commands[-1], "--resume"])
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*launcher, folder / "train.py", json.dumps(commands))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder


def alone(cli: Cli, images: Path, teacher: Path, output: Path, *more: str) -> Path:
    outcome = cli("distill", "--data", images, "--teacher", teacher, "--output", output, *SETTINGS, *more)
    assert outcome.code == 0, outcome.err
    return output


@pytest.mark.parametrize("name", ["groups", "vit"])
def test_however_the_batch_is_cut_the_curve_is_the_same(
    cli: Cli, images: Path, teacher_file: Path, tmp_path: Path, together: Path, name: str
) -> None:
    whole = alone(cli, images, teacher_file, tmp_path / "whole", *RUNS[name], "--micro-batch", "8")
    cut = alone(cli, images, teacher_file, tmp_path / "cut", *RUNS[name], "--micro-batch", "4")
    assert len([line for line in lines(whole) if "train/loss" in line]) == 6
    for other in (cut, together / name):
        assert furthest(whole, other) < 2e-5
        assert_close(whole, other)
    assert result(together / name)["processes"] == 2
    assert result(together / name)["teacher_top1"] == result(whole)["teacher_top1"]
    faster = alone(cli, images, teacher_file, tmp_path / "faster", *RUNS[name], "--lr", "0.0202", "--micro-batch", "8")
    assert furthest(whole, faster) > 1e-4, "the comparison sees a hundredth of the learning rate"
    if name == "groups":  # what `batchnorm_over` is for
        apart = ("--batchnorm-over", "process", "--micro-batch", "8")
        other = alone(cli, images, teacher_file, tmp_path / "apart", *RUNS[name], *apart)
        with pytest.raises(AssertionError):
            assert furthest(whole, other) < 1e-4


def test_batch_norm_over_all_processes_is_that_of_one(
    cli: Cli, images: Path, teacher_file: Path, tmp_path: Path, together: Path
) -> None:
    whole = alone(cli, images, teacher_file, tmp_path / "whole", *RUNS["all"], "--micro-batch", "8")
    assert furthest(whole, together / "all") < 2e-5
    assert_close(whole, together / "all")


def test_sharded_models_train_as_whole_ones(together: Path) -> None:
    assert furthest(together / "vit", together / "sharded") < 2e-5
    assert_close(together / "vit", together / "sharded")
    assert result(together / "sharded")["teacher_top1"] == result(together / "vit")["teacher_top1"]
    size = {"patch_size": 8, "depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 32, "num_classes": 3}
    timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(together / "sharded" / "student.safetensors"), **size)
    assert_close_in_the_mean(together / "headless", together / "sharded headless")


def test_the_first_process_draws_unless_models_are_sharded(together: Path) -> None:
    drawn = {
        name: EventAccumulator(str(together / name / "tensorboard")).Reload().Tags()["images"]
        for name in ("vit", "sharded")
    }
    assert "attention/CAP_last, spatial" in drawn["vit"]
    assert drawn["sharded"] == []


def test_each_process_holds_about_half_of_sharded_models(together: Path) -> None:
    shares = [json.loads((together / "sharded" / f"shares-{rank}.json").read_text()) for rank in range(2)]
    for first, second in zip(*shares, strict=True):
        assert 0.4 < first < 0.6
        assert 0.4 < second < 0.6
    for first, second in list(zip(*shares, strict=True))[:2]:
        assert first + second == pytest.approx(1)


def test_a_sharded_run_goes_on_sharded_or_whole(
    cli: Cli, images: Path, teacher_file: Path, tmp_path: Path, together: Path
) -> None:
    """With the moving average and AdamW's state; from a checkpoint in the middle."""
    flags = (*VIT, *STOPPED, "--micro-batch", "4")
    undisturbed = alone(cli, images, teacher_file, tmp_path / "undisturbed", *flags)
    assert_close_in_the_mean(undisturbed, together / "kept")
    assert result(together / "kept")["sha256"] == result(together / "stopped")["sha256"]
    run = tmp_path / "run"
    shutil.copytree(together / "kept", run)
    (run / "result.json").unlink()
    newest_checkpoint(run).unlink()
    assert_close_in_the_mean(undisturbed, alone(cli, images, teacher_file, run, *flags, "--resume"))


def test_parameters_without_gradient_are_left_alone_as_in_one_process(
    cli: Cli, images: Path, teacher_file: Path, tmp_path: Path, together: Path
) -> None:
    """The last norm of a ViT whose logits nobody reads; 2 x 2 micro-batches of 4."""
    cut = alone(cli, images, teacher_file, tmp_path / "cut", *RUNS["headless"], "--micro-batch", "4")
    assert_close_in_the_mean(cut, together / "headless")


def test_a_wrong_input_gives_one_line_and_its_code(images: Path, tmp_path: Path) -> None:
    (images / "lone").mkdir(exist_ok=True)
    flags: tuple[str | Path, ...] = (
        "--data",
        images,
        "--val-split",
        "lone",
        "--output",
        tmp_path / "run",
        *SETTINGS,
        *TINY_STUDENT,
    )
    process = start("-m", "scalekd", "distill", "--devices", "2", "--method", "none", *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert (out, err.count("error:"), err.strip().count("\n")) == ("", 1, 0), err
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_that_one_process_goes_on_from(
    cli: Cli, images: Path, teacher_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    base: tuple[str | Path, ...] = (
        "--data",
        images,
        "--teacher",
        teacher_file,
        *SETTINGS,
        *RUNS["groups"],
        "--ema",
        "0.9",
        "--lr",
        "0.0002",
    )
    flags = (*base, "--epochs", "30", "--validate-every", "30", "--micro-batch", "4")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start("-m", "scalekd", "distill", "--output", stopped, "--devices", "2", *flags)
    log = stopped / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 20:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)  # the launcher hands it on
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].endswith(f"scalekd distill --resume --output {stopped}")
    assert not (stopped / "result.json").exists()
    resumed = cli("distill", *flags, "--output", stopped, "--devices", "1", "--auto-resume")
    assert resumed.code == 0, resumed.err
    undisturbed = cli("distill", *flags, "--output", whole, "--auto-resume")
    assert undisturbed.code == 0, undisturbed.err
    assert [line["step"] for line in lines(stopped)] == [line["step"] for line in lines(whole)]
    assert_close(stopped, whole)
    again = cli("distill", *flags, "--output", stopped, "--auto-resume", "--json")
    assert json.loads(again.out) == result(stopped), "a finished run only gives its result"


SLOW = """
import sys, time
from scalekd.cli.main import run
from scalekd.tasks.distill.task import StudentLearner as Learner

honest = Learner.validate
def slow(*args):
    time.sleep(600 if "stopped" in " ".join(sys.argv) else 0)
    honest(*args)
Learner.validate = slow
run()
"""


@pytest.mark.slow
def test_processes_that_are_killed_in_a_validation_go_on_with_it(cli: Cli, images: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    common = ("distill", "--method", "none", "--data", images, *SETTINGS, *TINY_STUDENT, "--micro-batch", "4")
    flags = (*common, "--batchnorm-over", "4", "--epochs", "2", "--validate-every", "1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*launcher, tmp_path / "slow.py", *flags, "--output", stopped)
    while not list(stopped.glob("checkpoints/step-*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    process.communicate(timeout=60)
    assert newest_checkpoint(stopped).name == "step-00000003.ckpt"
    again = ("--auto-resume", "--devices", "1")
    assert cli(*flags, "--output", stopped, *again).code == 0
    assert cli(*flags, "--output", whole).code == 0
    assert furthest(stopped, whole) < 2e-5


def test_what_cannot_be_shared_is_refused(cli: Cli, images: Path, tmp_path: Path) -> None:
    flags = ("distill", "--method", "none", "--data", images, "--output", tmp_path / "run", *SETTINGS, *TINY_STUDENT)
    cli(*flags, "--batchnorm-over", "3").refused("batchnorm_over: 3 does not divide the batch of 8")
    cut = ("--batchnorm-over", "8", "--micro-batch", "4")
    cli(*flags, *cut).refused("batchnorm_over: 8 images cannot be put together from micro-batches of 4")
    cli(*flags, "--batchnorm-over", "2", "--compile").refused("compile", "batchnorm_over")
    cli(*flags, "--auto-resume", "--overwrite").refused("auto-resume")
    outcome = cli(*flags, "--batchnorm-over", "2")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["batchnorm_over"] == 2


def test_processes_cut_a_batch_as_accumulation_does() -> None:
    settings: dict[str, Any] = {"size": 50, "batch": 12, "epochs": 2, "seed": 3}
    parts = list(TrainingStream(**settings, accumulate=6))
    for count in (2, 3):
        streams = [TrainingStream(**settings, accumulate=6 // count, rank=r, count=count) for r in range(count)]
        assert [batch for batches in zip(*streams, strict=True) for batch in batches] == parts
    whole = [[key.image for key in batch] for batch in EvaluationOrder(7, 2)]
    assert whole == [[0, 1], [2, 3], [4, 5], [6]]
    ranks = [EvaluationOrder(7, 2, rank, 3) for rank in range(3)]
    assert [[[key.image for key in batch] for batch in order] for order in ranks] == [
        [whole[0], whole[3]],
        [whole[1], []],
        [whole[2], []],
    ], "the batches of one process, shared out"
    assert [len(order) for order in ranks] == [len(list(order)) for order in ranks] == [2, 2, 2]


@pytest.mark.slow
def test_a_lost_process_is_started_again_by_torchrun(images: Path, teacher_file: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = ("--data", images, "--teacher", teacher_file, *SETTINGS, *VIT, "--epochs", "30", "--validate-every", "3")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    undisturbed = start(*launcher, "-m", "scalekd", "distill", *flags, "--output", whole)
    assert undisturbed.wait(120) == 0, undisturbed.communicate()[1]
    process = start(*launcher, "-m", "scalekd", "distill", *flags, "--output", run)
    while not list(run.glob("checkpoints/step-*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert result(run)["sha256"] == result(whole)["sha256"]
    assert lines(run) == lines(whole)
