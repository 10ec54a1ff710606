"""Tests whether a long training survives failures of a machine: a data worker is killed every other minute.

Two runs of the same recipe train concurrently, one undisturbed, one whose data workers are killed in turn; the memory
of both is sampled. Usage: python benchmarks/soak.py --data FOLDER [--epochs 40] [--output FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import Parser, check_output, positive, say
from measurement import describe_machine

from scalekd.atomic import write_json
from scalekd.data import read_splits
from scalekd.errors import UserError
from scalekd.models import Classifier

WORKERS = 2
# A student, a teacher with random weights, and an augmentation that have something to do, small enough for many steps.
RECIPE = (
    *("--student", "resnet18", "--student-args", "{layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}"),
    *("--resolution", "112", "--batch", "32", "--micro-batch", "32", "--ema", "0.999", "--mixup", "0.2"),
    *("--warmup-epochs", "0", "--workers", str(WORKERS), "--max-corrupt", "0", "--no-check-teacher", "--seed", "0"),
    *("--checkpoint-minutes", "1"),
)


@dataclass
class Run:
    """A training in a separate process, with samples of the memory of all its processes.

    Attributes:
        folder: The run folder.
        process: The training process.
        samples: Seconds since the start and MiB: of the main process, and of it with its workers (shared pages once).
        ended: Seconds since the start; None while it runs.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    ended: float | None = None

    def children(self) -> list[int]:
        """Return its data workers."""
        try:
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
        except OSError:
            return []
        return [int(pid) for pid in listed.split()]

    def sample(self, now: float) -> None:
        """Record the memory at `now`, and whether the run has ended."""
        if self.process.poll() is not None:
            self.ended = self.ended or now
            return
        own = _proportional_mib(self.process.pid)
        self.samples.append((now, own, own + sum(map(_proportional_mib, self.children()))))

    def kill_worker(self, turn: int) -> bool:
        """Kill a data worker as the kernel does when memory runs out; return whether there was one.

        The first workers load training images; any others belong to a validation and end soon.
        """
        workers = self.children()[:WORKERS]
        if workers:
            os.kill(workers[turn % len(workers)], signal.SIGKILL)
        return bool(workers)

    def report(self, warm_up: float) -> dict[str, Any]:
        """Return the hash, log lines, kept checkpoints, and the memory growth after `warm_up` seconds."""
        log = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
        steps = [line["step"] for line in lines if "train/loss" in line]
        result = json.loads((self.folder / "result.json").read_text("utf-8")) if self.process.returncode == 0 else {}
        settled = [sample for sample in self.samples if sample[0] > warm_up]
        return {
            "exit_code": self.process.returncode,
            "seconds": self.ended,
            "sha256": result.get("sha256"),
            "steps": result.get("steps"),
            "log_lines_repeated": len(steps) - len(set(steps)),
            "log_lines": len(steps),
            "validations": sum("val/top1" in line for line in lines),
            "checkpoints": len(list((self.folder / "checkpoints").glob("step-*.ckpt"))),
            "memory_main": slope(settled, 1),
            "memory_with_workers": slope(settled, 2),
            "samples": [tuple(round(value, 1) for value in sample) for sample in self.samples[:: 60 // PERIOD]],
        }


PERIOD = 5  # seconds between samples


def _proportional_mib(pid: int) -> float:
    """Return a process's memory, with shared pages divided among the processes that share them; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    except (OSError, ValueError):
        return 0.0


def slope(samples: list[tuple[float, float, float]], column: int) -> dict[str, float]:
    """Return the median in MiB, and the slope of a fitted line with its standard error in MiB per hour."""
    if len(samples) < 3:
        return {}
    hours = np.array([sample[0] / 3600 for sample in samples])
    mib = np.array([sample[column] for sample in samples])
    (gradient, _), covariance = np.polyfit(hours, mib, 1, cov=True)
    return {
        "median_mib": round(float(np.median(mib)), 1),
        "mib_an_hour": round(float(gradient), 2),
        "standard_error": round(float(np.sqrt(covariance[0, 0])), 2),
        "first_quarter_mib": round(float(np.median(mib[: len(mib) // 4 or 1])), 1),
        "last_quarter_mib": round(float(np.median(mib[-(len(mib) // 4 or 1) :])), 1),
    }


def flat(line: dict[str, float]) -> bool:
    """Return whether memory does not grow, according to a `slope`."""
    return bool(line) and line["mib_an_hour"] <= max(3 * line["standard_error"], 20)


def make_teacher(path: Path, classes: tuple[str, ...]) -> None:
    """Write a small vision transformer with random weights; its outputs do not matter here."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"patch_size": 16, "depth": 4, "embed_dim": 96, "num_heads": 3}
    model = Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=len(classes), resolution=112, **size)
    model.save(path, classes)


def start(args: Namespace, teacher: Path, folder: Path) -> Run:
    """Start a training; its output goes to a file next to its folder."""
    command = [sys.executable, "-m", "scalekd", "distill", *RECIPE, "--data", str(args.data), "--teacher", str(teacher)]
    command += ["--epochs", str(args.epochs), "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with folder.with_suffix(".log").open("wb") as log:
        return Run(folder, subprocess.Popen(command, stdout=log, stderr=log, env=environment))


def watch(disturbed: Run, calm: Run, kill_seconds: float) -> list[float]:
    """Wait for both to end; return the times when a worker of `disturbed` was killed, in seconds since the start."""
    begun, kills = time.monotonic(), list[float]()
    try:
        while disturbed.ended is None or calm.ended is None:
            time.sleep(PERIOD)
            now = time.monotonic() - begun
            for run in (disturbed, calm):
                run.sample(now)
            if now > kill_seconds * (len(kills) + 1) and disturbed.ended is None and disturbed.kill_worker(len(kills)):
                kills.append(now)
                say(f"{now / 60:5.1f} min: worker {len(kills)} killed; {disturbed.samples[-1][2]:.0f} MiB in all")
    finally:
        for run in (disturbed, calm):
            run.process.kill()
            run.process.wait()
    return kills


def main() -> int:
    parser = Parser(
        description="Train twice, once with data workers killed in turn; compare weights, logs and memory.",
        epilog="exit codes: 0 nothing lost, memory flat; 1 not so, or it took less than --minutes; 2 wrong input",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--epochs", type=positive, default=40, help="epochs of both runs")
    parser.add_argument("--minutes", type=float, default=30, help="the least that it must take")
    parser.add_argument("--kill-minutes", type=float, default=2, help="minutes between killed workers")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="scalekd-soak-"))
    try:
        check_output(args.output)
        make_teacher(scratch / "teacher.safetensors", read_splits(args.data, "train", "val")[0].classes)
        disturbed, calm = (
            start(args, scratch / "teacher.safetensors", scratch / name) for name in ("disturbed", "calm")
        )
        kills = watch(disturbed, calm, 60 * args.kill_minutes)
        result = describe(args, disturbed, calm, kills)
    except UserError as error:
        say(f"error: {error}")
        return 2
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if args.output:
        write_json(args.output, result)
    print(json.dumps(result | {"machine": None, "disturbed": None, "calm": None}, indent=2))
    return int(not (result["nothing_lost"] and result["memory_flat"]) or result["minutes"] < args.minutes)


def describe(args: Namespace, disturbed: Run, calm: Run, kills: list[float]) -> dict[str, Any]:
    """Return the result; memory is measured after a tenth of the time, when pools and caches are full."""
    assert disturbed.ended is not None
    reports = [run.report(disturbed.ended / 10) for run in (disturbed, calm)]
    printed = (disturbed.folder.with_suffix(".log")).read_text("utf-8")
    for run, report in zip((disturbed, calm), reports, strict=True):
        if report["exit_code"]:
            last = run.folder.with_suffix(".log").read_text("utf-8").splitlines()[-1:]
            say(f"{run.folder.name}: exit code {report['exit_code']}: {' '.join(last)}")
    memory = {key: reports[0][key] for key in ("memory_main", "memory_with_workers")}
    alike = all(
        reports[0][key] == reports[1][key] for key in ("sha256", "steps", "log_lines", "validations", "checkpoints")
    )
    return {
        "benchmark": "soak",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"recipe": " ".join(RECIPE), "epochs": args.epochs, "kill_minutes": args.kill_minutes},
        "minutes": round(disturbed.ended / 60, 1),
        "workers_killed": len(kills),
        "workers_replaced": printed.count("was killed"),
        "nothing_lost": alike and reports[0]["sha256"] is not None and not reports[0]["log_lines_repeated"],
        "memory": memory,
        "memory_flat": all(map(flat, memory.values())),
        "disturbed": reports[0],
        "calm": reports[1],
        "machine": describe_machine(torch.device("cpu")),
    }


if __name__ == "__main__":
    sys.exit(main())
