"""Compares a training step with cached teacher outputs with the live step, and its memory without most of the teacher.

Usage: python benchmarks/cached.py --teacher T --student S --batch B [--output FILE]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import Parser, ask_child, check_output, positive, say
from measurement import DTYPES, describe_machine
from pair import STEP, Pair, prepare, step
from torch.optim import AdamW

from scalekd.atomic import write_json
from scalekd.errors import UserError
from scalekd.hardware import autocast
from scalekd.methods.outputs import TeacherOutputs
from scalekd.planner import step_flops
from scalekd.planner.measure import peak_memory, reset_peak_memory, seconds
from scalekd.planner.memory import MIB


def measure(pair: Pair, *, batch: int, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """Measure live and cached steps alternately, after one warm-up of each, and the ratio that the FLOPs predict."""
    method = pair.method(torch.device("cpu"))
    flops = step_flops(method)
    prepare(method, dtype)
    images, labels = pair.batch(batch, torch.device("cpu"))
    with autocast(images.device, dtype):
        teacher_outputs = method.teacher(images)
    losses = [step(method, images, labels, dtype, teacher_outputs=known).item() for known in (None, teacher_outputs)]
    times: dict[str, list[float]] = {"live": [], "cached": []}
    for number in range(steps):
        order = (("live", None), ("cached", teacher_outputs))
        for name, known in order if number % 2 else reversed(order):
            work = lambda known=known: step(method, images, labels, dtype, teacher_outputs=known)  # noqa: E731
            times[name].append(seconds(work, images.device))
        say(f"pair {number + 1} of {steps}: live {times['live'][-1]:.2f} s, cached {times['cached'][-1]:.2f} s")
    ratios = [live / cached for live, cached in zip(times["live"], times["cached"], strict=True)]
    return {
        "step_seconds": times,
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "flops_ratio": flops.total / (flops.total - flops.teacher),
        "loss_equal": losses[0] == losses[1],
    }


def peak(pair: Pair, *, batch: int, dtype: torch.dtype, steps: int, freed: bool) -> int:
    """Return the peak memory in bytes of a fresh process's cached steps, with AdamW and all that the method holds.

    Args:
        pair: Teacher and student.
        batch: Images a step.
        dtype: The autocast type.
        steps: Number of steps.
        freed: Whether the teacher keeps its tail only, as in a run from a cache; otherwise it keeps everything.
    """
    method = pair.method(torch.device("cpu"))
    prepare(method, dtype)
    images, labels = pair.batch(batch, torch.device("cpu"))
    tokens = method.teacher.tokens
    outputs = TeacherOutputs(
        torch.rand(batch, tokens.positions, tokens.channels, dtype=dtype),
        torch.rand(batch, pair.num_classes, dtype=dtype),
    )
    if freed:
        method.teacher.keep_tail_only()
    optimizer = AdamW(parameter for parameter in method.parameters() if parameter.requires_grad)
    reset_peak_memory(images.device)
    for _ in range(steps):
        step(method, images, labels, dtype, teacher_outputs=outputs)
        optimizer.step()
    return round(peak_memory(images.device) * MIB)


def main() -> int:
    parser = Parser(
        description="Measure a ScaleKD step with and without the teacher's forward, random weights, on CPU."
    )
    parser.add_argument("--teacher", required=True, help="timm name")
    parser.add_argument("--student", required=True, help="timm name")
    parser.add_argument("--batch", type=positive, required=True, help="images a step")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--resolution", type=positive, default=224, help="image side in pixels, default 224")
    parser.add_argument("--steps", type=positive, default=4, help="measured steps of each, in turns; default 4")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument("--peak", choices=("held", "freed"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = {"batch": args.batch, "dtype": DTYPES[args.dtype], "steps": args.steps}
    try:
        check_output(args.output)
        pair = Pair(args.teacher, args.student, args.resolution)
        if args.peak:
            print(peak(pair, **sizes, freed=args.peak == "freed"))
            return 0
        peaks = {how: ask_child(__file__, *sys.argv[1:], "--peak", how) for how in ("held", "freed")}
        found = measure(pair, **sizes) | {"peak_bytes": peaks, "memory_ratio": peaks["freed"] / peaks["held"]}
    except UserError as error:
        say(f"error: {error}")
        return 2
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "peak")} | {"step": STEP}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine(torch.device("cpu"))
    result = {"benchmark": "cached", "date": when, "settings": settings, **found, "machine": machine}
    if args.output:
        write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
