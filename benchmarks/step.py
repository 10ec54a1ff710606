"""Compares a training step of ScaleKD in the package with a plain transcription of the paper, in one process.

Usage: python benchmarks/step.py --teacher T --student S --batch B [options]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import Parser, ask_child, check_output, positive, say
from measurement import DTYPES, MatmulPeak, count_flops, describe_machine, profile
from pair import STEP, Pair, join, prepare, step
from report import VARIANTS, summarise, table
from torch import Tensor, nn
from transcription import Transcription, copy_projectors

from scalekd import ScaleKD
from scalekd.atomic import write_json
from scalekd.errors import UserError
from scalekd.planner.measure import peak_memory, reset_peak_memory, seconds

TOLERANCE = {"loss": 1e-4, "gradient": 1e-2}
CHECK_BATCH = 2


class MismatchError(Exception):
    """The two variants compute different losses, so that their times must not be compared."""


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Measure one ScaleKD training step, random weights, against a plain float32 transcription.",
        epilog="exit codes: 0 done, 1 the two variants disagree, 2 wrong input",
    )
    parser.add_argument("--teacher", required=True, help="timm name of a Swin or plain ViT")
    parser.add_argument("--student", required=True, help="timm name")
    parser.add_argument("--batch", type=positive, required=True, help="images a step")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of ours; the transcription is always float32")
    parser.add_argument("--resolution", type=positive, default=224, help="image side in pixels, default 224")
    parser.add_argument("--num-classes", type=positive, default=1000, help="default 1000")
    parser.add_argument("--steps", type=positive, default=5, help="measured steps of each, alternating; default 5")
    parser.add_argument("--warmup", type=positive, default=1, help="steps of each before those; default 1")
    parser.add_argument("--matmul-size", type=positive, default=4096, help="of the peak's square product; default 4096")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory; on by default"
    )
    parser.add_argument("--profile", action="store_true", help="also print where the time of one step of ours goes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)  # the child of `measure_memory`
    return parser.parse_args()


def pair_of(args: argparse.Namespace) -> Pair:
    return Pair(args.teacher, args.student, args.resolution, args.num_classes)


def compare(ours: ScaleKD, plain: Transcription, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the relative differences of the total loss and the student's gradient with equal parameters, in float32.

    Raises:
        MismatchError: If one is above its tolerance.
    """
    copy_projectors(ours, plain)
    totals, gradients = [], []
    model: ScaleKD | Transcription
    for model in (ours, plain):
        torch.manual_seed(2)  # some students drop paths at random
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            totals.append(step(model, images, labels, torch.float32).item())
        parameters = [p for name, p in model.named_parameters() if name.startswith("student.")]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        model.zero_grad(set_to_none=True)
    differences = {
        "loss": abs(totals[0] - totals[1]) / abs(totals[1]),
        "gradient": ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item(),
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE[name]:
            raise MismatchError(f"{name}: ours and the transcription differ by {difference:.2g} (relative)")
    return differences


def measure_memory() -> dict[str, Any]:
    """Measure the peak memory of each variant, each in a fresh process."""
    answers: dict[str, Any] = {}
    for variant in VARIANTS:
        answers[variant] = ask_child(__file__, *sys.argv[1:], "--memory-of", variant)
        say(f"memory: {variant} {answers[variant]['peak_mib']:.0f} MiB")
    how = {answer.pop("how") for answer in answers.values()}
    ratio = answers["ours"]["peak_mib"] / answers["transcription"]["peak_mib"]
    return answers | {"ratio": ratio, "how": f"{' or '.join(how)}; two steps, no optimiser"}


def run_memory_child(args: argparse.Namespace, device: torch.device) -> None:
    """Build one variant, run two steps, print the peak."""
    pair, dtype = pair_of(args), torch.float32
    model: nn.Module
    if args.memory_of == "ours":
        dtype = DTYPES[args.dtype]
        model = ours = pair.method(device)
        prepare(ours, dtype)
    else:
        model = Transcription(*pair.models(device)).to(device).train()
    images, labels = pair.batch(args.batch, device)
    how = reset_peak_memory(device)
    built = peak_memory(device)
    for _ in range(2):
        step(model, images, labels, dtype)
    print(json.dumps({"built_mib": built, "peak_mib": peak_memory(device), "how": how}))


def measure_speed(
    steps: dict[str, Callable[[], object]], args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Measure the variants alternately, starting with the other one each time, with a matrix product after each pair.

    Returns:
        Seconds of each step of each variant, and the matrix-product peak in GFLOP/s of each type.
    """
    peak = MatmulPeak(args.matmul_size, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(-args.warmup, args.steps):
        for name in reversed(steps) if index % 2 else steps:
            taken = seconds(steps[name], device)
            if index >= 0:
                times[name].append(taken)
        peak.sample()
        if index >= 0:
            pair = ", ".join(f"{name} {taken[-1]:.3f} s" for name, taken in times.items())
            say(f"pair {index + 1} of {args.steps}: {pair}")
    return times, peak.best()


def run(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure memory, check that both compute the same, then measure FLOPs and speed."""
    load_before = os.getloadavg()
    memory = measure_memory() if args.memory else None  # first, so that the children find the memory free
    pair = pair_of(args)
    teacher, student = pair.models(device)
    plain = Transcription(deepcopy(teacher), deepcopy(student)).to(device).train()
    ours = join(teacher, student)
    differences = compare(ours, plain, *pair.batch(CHECK_BATCH, device))
    dtype = DTYPES[args.dtype]
    prepare(ours, dtype)
    images, labels = pair.batch(args.batch, device)
    steps: dict[str, Callable[[], object]] = {
        "ours": lambda: step(ours, images, labels, dtype),
        "transcription": lambda: step(plain, images, labels, torch.float32),
    }
    flops = {name: count_flops(work) for name, work in steps.items()}
    times, peak = measure_speed(steps, args, device)
    if args.profile:
        say(profile(steps["ours"], device))
    hidden = ("json", "output", "memory", "memory_of", "profile")
    return {
        "benchmark": "step",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {k: v for k, v in vars(args).items() if k not in hidden} | {"step": STEP},
        "loss_difference": differences["loss"],
        "relative_difference": differences,
        **summarise(times, flops, peak, batch=args.batch, dtype=args.dtype),
        "memory": memory,
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": describe_machine(device),
    }


def main() -> int:
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if args.memory_of:
            run_memory_child(args, device)
            return 0
        check_output(args.output)
        result = run(args, device)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except MismatchError as error:
        say(f"error: {error}; their times are not compared")
        return 1
    if args.output:
        write_json(args.output, result)
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
