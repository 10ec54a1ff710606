"""Compares steps of several students trained concurrently, with one teacher forward, with a step of each alone.

Usage: python benchmarks/students.py --teacher T --student A --student B ... --batch N; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import Parser, check_output, positive, say
from measurement import DTYPES, describe_machine
from pair import Pair, step
from torch.optim import Optimizer

from scalekd.atomic import write_json
from scalekd.engine.optimisation import build_optimizer
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.methods.base import Method
from scalekd.models.memory_format import prepare
from scalekd.planner import StepFlops, step_flops
from scalekd.planner.measure import seconds
from scalekd.recipes import Recipe, load
from scalekd.tasks.distill.build import build_method, build_student, build_teacher

STEP = "forwards, all losses, backward, optimiser step; gradients set to None before, no data loading"


@dataclass(frozen=True)
class Trained:
    """A student that can take steps."""

    name: str
    method: Method
    optimizer: Optimizer


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Measure steps of several students with one teacher forward against separate steps.")
    parser.add_argument("--teacher", required=True, help="timm name of a vision transformer")
    parser.add_argument("--student", required=True, action="append", help="timm name; give two or more")
    parser.add_argument("--batch", type=positive, required=True, help="images a step")
    parser.add_argument("--method", choices=("kd", "dist", "ofa", "fd", "scalekd"), default="scalekd")
    parser.add_argument("--optimizer", choices=("adamw", "sgd", "lamb"), default="adamw")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="default bf16")
    parser.add_argument("--resolution", type=positive, default=224, help="image side in pixels, default 224")
    parser.add_argument("--num-classes", type=positive, default=1000, help="default 1000")
    parser.add_argument("--steps", type=positive, default=5, help="measured pairs, default 5")
    parser.add_argument("--warmup", type=positive, default=1, help="pairs before those, default 1")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON to this file")
    return parser.parse_args()


def build(args: argparse.Namespace, device: torch.device) -> list[Trained]:
    """Build the students with one teacher, all with random weights, in the memory layout of training.

    Raises:
        UserError: If fewer than two students are given, or one cannot be built or joined.
    """
    if len(args.student) < 2:
        raise UserError("student: one alone shares no teacher; give --student two times or more")

    def recipe_of(student: str) -> Recipe:
        keys = {key: getattr(args, key) for key in ("teacher", "method", "optimizer", "resolution")}
        return load(None, keys | {"student": student, "teacher_resolution": args.resolution})

    torch.manual_seed(0)
    teacher = build_teacher(recipe_of(args.student[0]), pretrained=False, num_classes=args.num_classes)
    trained = []
    for name in args.student:
        recipe = recipe_of(name)
        method = build_method(recipe, teacher, build_student(recipe, args.num_classes)).to(device).train()
        prepare(method, device, DTYPES[args.dtype], channels_last=recipe.channels_last)
        trained.append(Trained(name, method, build_optimizer(recipe, method)))
    return trained


def measure(
    trained: Sequence[Trained], args: argparse.Namespace, device: torch.device
) -> tuple[list[float], list[list[float]]]:
    """Measure steps of all together and of each alone alternately, starting with the other kind each time.

    Returns:
        Seconds of each step of all together, and of each student's step alone, pair by pair.
    """
    dtype = DTYPES[args.dtype]
    images, labels = Pair(args.teacher, "", args.resolution, args.num_classes).batch(args.batch, device)

    def take(one: Trained, **known: Any) -> None:
        step(one.method, images, labels, dtype, **known)
        one.optimizer.step()

    def together() -> None:
        with autocast(device, dtype):
            teacher_outputs = trained[0].method.teacher(images)
        for one in trained:
            take(one, teacher_outputs=teacher_outputs)

    beside: list[float] = []
    alone: list[list[float]] = []
    turns: list[Callable[[], None]] = [
        lambda: beside.append(seconds(together, device)),
        lambda: alone.append([seconds(lambda one=one: take(one), device) for one in trained]),  # type: ignore[misc]
    ]
    for index in range(args.warmup + args.steps):
        for turn in reversed(turns) if index % 2 else turns:
            turn()
        if index >= args.warmup:
            say(
                f"pair {index - args.warmup + 1} of {args.steps}: "
                f"together {beside[-1]:.3f} s, alone {sum(alone[-1]):.3f} s"
            )
    return beside[args.warmup :], alone[args.warmup :]


def bound(flops: Sequence[StepFlops]) -> float:
    """Return the FLOPs of a step together, with one teacher forward, over those of the steps alone."""
    return (flops[0].teacher + sum(one.total - one.teacher for one in flops)) / sum(one.total for one in flops)


def run(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Build, count, measure."""
    load_before = os.getloadavg()
    keep_freed_memory()
    trained = build(args, device)
    flops = [step_flops(one.method, args.batch) for one in trained]
    beside, alone = measure(trained, args, device)
    ratios = [one / sum(each) for one, each in zip(beside, alone, strict=True)]
    return {
        "benchmark": "students",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {k: v for k, v in vars(args).items() if k != "output"} | {"step": STEP},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "flops_ratio": bound(flops),
        "together_seconds": beside,
        "students": [
            {"student": one.name, "alone_seconds": times, "flops_per_image": asdict(count)}
            for one, times, count in zip(trained, zip(*alone, strict=True), flops, strict=True)
        ],
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": describe_machine(device),
    }


def main() -> int:
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_output(args.output)
        result = run(args, device)
    except UserError as error:
        say(f"error: {error}")
        return 2
    if args.output:
        write_json(args.output, result)
    print(
        f"{args.teacher} -> {', '.join(args.student)}, {args.method}, batch {args.batch}, {args.dtype}\n"
        f"together / alone: {result['ratio']:.3f} (median of {args.steps} pairs; {result['ratio_min']:.3f} to "
        f"{result['ratio_max']:.3f}); by FLOPs {result['flops_ratio']:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
