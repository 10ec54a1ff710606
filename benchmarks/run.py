"""Runs all CPU benchmarks one after another, and prints one table of goals and measurements.

Usage: python benchmarks/run.py [--only NAME ...] [--table]; `make bench` runs all. See benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from command import Parser, say
from report import markdown

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAIR = ("--teacher", "swin_large_patch4_window7_224", "--student", "resnet50", "--batch", "16")
SMALL_PAIR = ("--teacher", "vit_small_patch14_dinov2", "--student", "mobilenetv1_100")
FORMS = ("labels only", "kd, cached", "lean, cached", "1x1 stems, cached", "exact, cached", "timm's feature task, live")
FEW = ("--rounds", "4", "--only", *FORMS)
STUDENTS = tuple(
    word for name in ("mobilenetv1_100", "resnet18", "vit_tiny_patch16_224") for word in ("--student", name)
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        metric: What was measured.
        measured: The result.
        goal: The goal; empty for a figure without one.
        reached: Whether the goal is reached; None without a goal.
    """

    metric: str
    measured: str
    goal: str = ""
    reached: bool | None = None


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder.

    Attributes:
        command: The script and its options, without `--output`.
        file: The JSON in `results/` that it writes.
        rows: Creates the lines of the table from that JSON.
    """

    command: tuple[str, ...]
    file: str
    rows: Callable[[dict[str, Any]], Iterator[Row]]


def at_least(metric: str, value: float, goal: float, form: str = ".2f") -> Row:
    """Return a line whose goal is a lower bound."""
    return Row(metric, format(value, form), f"at least {goal:{form}}", value >= goal)


def at_most(metric: str, value: float, goal: float, form: str = ".2f") -> Row:
    """Return a line whose goal is an upper bound."""
    return Row(metric, format(value, form), f"at most {goal:{form}}", value <= goal)


def step_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the lines of speed, utilisation and memory; the goals are those of bf16."""
    dtype = result["ours"]["dtype"]
    speed = f"step in {dtype}: times as fast as the transcription in float32"
    if dtype == "bf16":
        yield at_least(speed, result["speedup"], 4)
        yield at_least("step in bf16: of the matrix peak", result["ours"]["fraction_of_peak"], 0.7, ".0%")
        yield at_most("step in bf16: peak memory over the transcription's", result["memory"]["ratio"], 0.8)
    else:
        yield Row(speed, f"{result['speedup']:.2f}")


def growth_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the lines of the exponents, compared with the FLOPs."""
    limit = 1 + result["tolerance"]
    for axis, fits in result["axes"].items():
        for quantity in ("time", "memory"):
            fit = fits[quantity]["flops"]
            measured = f"{fit['exponent']:.2f} ± {fit['spread']:.2f}"
            reached = fit["exponent"] <= limit
            yield Row(f"growth with {axis}: exponent of {quantity} in FLOPs", measured, f"at most {limit:.2f}", reached)


def cached_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the line of the live step over the cached one; a student under 1 GMAC has a higher goal."""
    settings = result["settings"]
    small = "mobilenet" in settings["student"]
    pair = f"{settings['teacher']} -> {settings['student']}"
    metric = f"{pair}: times as fast with the cache (by FLOPs {result['flops_ratio']:.2f})"
    yield at_least(metric, result["speedup"], 2 if small else 1.4)


def whole_step_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the lines of the lean and the exact form, over labels only and over timm's own task, step by step."""
    seconds = result["step_seconds"]

    def over(one: str, other: str) -> float:
        return float(median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)))

    lean, exact, alone, timm = "lean, cached", "exact, cached", "labels only", "timm's feature task, live"
    pair = f"{result['settings']['teacher']} -> {result['settings']['student']}"
    if "mobilenet" in pair:
        yield at_most(f"{pair}: whole lean step over labels only", over(lean, alone), 1.4)
        yield at_most(f"{pair}: whole lean step over timm's live feature task", over(lean, timm), 0.45)
        yield at_most(f"{pair}: whole exact step over labels only", over(exact, alone), 4)
    else:
        yield at_least(f"{pair}: lean step, times as fast as the exact one", over(exact, lean), 3)
        yield at_most(f"{pair}: whole lean step over timm's live feature task", over(lean, timm), 0.6)


def students_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the line of several students trained concurrently over their separate runs."""
    settings = result["settings"]
    metric = f"{len(settings['student'])} students, {settings['method']}: of the time of separate steps"
    yield at_most(f"{metric} (by FLOPs {result['flops_ratio']:.0%})", result["ratio"], 0.6, ".0%")


def guard_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Return the line that states whether a machine-independent quantity has grown."""
    for pair, values in result["pairs"].items():
        grown = "; ".join(result["grown"][pair])
        yield Row(f"guard, {pair}: {len(values)} quantities", grown or "none grown", "none grown", not grown)


# To add a benchmark: a line here, and a function above that reads its JSON.
BENCHMARKS = {
    "guard": Benchmark(("guard.py",), "guard-check.json", guard_rows),
    "step-bf16": Benchmark(
        ("step.py", *PAIR, "--dtype", "bf16", "--steps", "3"),
        "step-swin_large-resnet50-bf16-cpu.json",
        step_rows,
    ),
    "step-float32": Benchmark(
        ("step.py", *PAIR, "--dtype", "float32", "--steps", "1", "--no-memory"),
        "step-swin_large-resnet50-float32-cpu.json",
        step_rows,
    ),
    "cached-resnet50": Benchmark(
        ("cached.py", *PAIR, "--steps", "3"), "cached-swin_large-resnet50-cpu.json", cached_rows
    ),
    "cached-mobilenetv1": Benchmark(
        ("cached.py", *PAIR[:2], "--student", "mobilenetv1_100", "--batch", "16", "--steps", "3"),
        "cached-swin_large-mobilenetv1-cpu.json",
        cached_rows,
    ),
    "whole-step-mobilenetv1": Benchmark(
        ("whole_step.py", *SMALL_PAIR, "--resolution", "112", "--dtype", "float32"),
        "whole_step-vit_small14-mobilenetv1-float32-cpu.json",
        whole_step_rows,
    ),
    "whole-step-resnet50": Benchmark(
        ("whole_step.py", *PAIR[:4], "--batch", "4", "--dtype", "float32", "--num-classes", "1000", *FEW),
        "whole_step-swin_large-resnet50-float32-cpu.json",
        whole_step_rows,
    ),
    "students-kd": Benchmark(
        ("students.py", *PAIR[:2], *STUDENTS, "--batch", "8", "--method", "kd", "--steps", "2"),
        "students-kd-swin_large-cpu.json",
        students_rows,
    ),
    "students-scalekd": Benchmark(
        ("students.py", *PAIR[:2], *STUDENTS, "--batch", "8", "--method", "scalekd", "--steps", "2"),
        "students-scalekd-swin_large-cpu.json",
        students_rows,
    ),
    "growth": Benchmark(("growth.py", "--quick", "--steps", "2"), "growth-quick-cpu.json", growth_rows),
}


def run_one(benchmark: Benchmark) -> bool:
    """Run a benchmark on the CPU; return whether it wrote a result. Exit code 1 with a result: a goal is missed."""
    script, *options = benchmark.command
    file = RESULTS / benchmark.file
    file.unlink(missing_ok=True)
    command = [sys.executable, str(FOLDER / script), *options, "--output", str(file)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    code = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False).returncode
    return code in (0, 1) and file.is_file()


def lines(name: str, *, failed: bool) -> list[tuple[str, str, str, str]]:
    """Return the lines of one benchmark: metric, goal, measured, reached."""
    file = RESULTS / BENCHMARKS[name].file
    if failed or not file.is_file():
        return [(name, "", "failed" if failed else "not measured", "")]
    rows = BENCHMARKS[name].rows(json.loads(file.read_text(encoding="utf-8")))
    answer = {True: "yes", False: "no", None: ""}
    return [(row.metric, row.goal, row.measured, answer[row.reached]) for row in rows]


def main() -> int:
    parser = Parser(
        description="Run the CPU set of benchmarks, write their JSON to benchmarks/results/, print goals and figures.",
        epilog="exit codes: 0 all ran, whatever they found; 1 one failed; 2 wrong input",
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    failed = set()
    for name in () if args.table else args.only or BENCHMARKS:
        start = time.monotonic()
        say(f"== {name}")
        if not run_one(BENCHMARKS[name]):
            failed.add(name)
        say(f"== {name}: {'failed after' if name in failed else 'done in'} {time.monotonic() - start:.0f} s")
    rows = [line for name in args.only or BENCHMARKS for line in lines(name, failed=name in failed)]
    print(markdown(("metric", "goal", "measured", "reached"), rows))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
