"""Measures how time and memory of a step grow with batch, resolution, teacher and student, compared with its FLOPs.

Usage: python benchmarks/growth.py --output FILE [--quick]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import Parser, ask_child, check_output, positive, say
from measurement import DTYPES, describe_machine
from pair import STEP, Pair, join, prepare, step
from picture import draw, short
from report import markdown
from scipy.stats import linregress

from scalekd.atomic import write_json
from scalekd.errors import UserError
from scalekd.hardware import pick_dtype
from scalekd.planner import step_flops
from scalekd.planner.measure import peak_memory, reset_peak_memory, seconds


@dataclass(frozen=True)
class Point:
    """The settings of one measurement."""

    teacher: str
    student: str
    batch: int
    resolution: int


MIDDLE = Point("swin_small_patch4_window7_224", "vit_small_patch16_224", batch=8, resolution=224)
AXES: dict[str, tuple[Any, ...]] = {
    "batch": (2, 4, 8, 16, 32),
    "resolution": (128, 160, 224, 320),
    "teacher": tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
    "student": tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
}
# The number that stands for a value of an axis.
SIZES = {"batch": "batch", "resolution": "resolution", "teacher": "teacher_parameters", "student": "student_parameters"}
QUANTITIES = {"time": "step_seconds", "memory": "peak_mib"}
TOLERANCE = 0.1


def points_of(axis: str, *, quick: bool) -> list[Point]:
    """Return the middle point with each value of one axis; with `quick`, only the ends and the middle itself."""
    values = AXES[axis]
    if quick:
        values = tuple(value for value in values if value in (values[0], getattr(MIDDLE, axis), values[-1]))
    return [replace(MIDDLE, **{axis: value}) for value in values]


def measure_point(point: Point, dtype: str, steps: int, device: torch.device) -> dict[str, Any]:
    """Measure seconds, peak memory and FLOPs of a step; the peak is valid in a fresh process only.

    The peak excludes the memory before the pair was built: interpreter and libraries do not grow.
    """
    pair = Pair(point.teacher, point.student, point.resolution)
    reset_peak_memory(device)
    before = peak_memory(device)
    teacher, student = pair.models(device)
    method = join(teacher, student)
    prepare(method, DTYPES[dtype])
    images, labels = pair.batch(point.batch, device)
    reset_peak_memory(device)
    times = [seconds(lambda: step(method, images, labels, DTYPES[dtype]), device) for _ in range(1 + steps)][1:]
    return asdict(point) | {
        "step_seconds": statistics.median(times),
        "all_step_seconds": times,
        "peak_mib": peak_memory(device) - before,
        "flops": point.batch * step_flops(method, point.batch).total,
        "teacher_parameters": sum(p.numel() for p in teacher.parameters()),
        "student_parameters": sum(p.numel() for p in student.parameters()),
        "load_average": os.getloadavg()[0],
    }


def begin(output: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the points in `output` that need not be measured again, or an empty result.

    Points of another revision, machine or setting are measured again; uncommitted changes are not detected.

    Raises:
        UserError: If the file is not one of this benchmark's.
    """
    result = {
        "benchmark": "growth",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": describe_machine(device),
        "points": [],
    }
    try:
        earlier = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
        if earlier and earlier["benchmark"] != "growth":
            raise KeyError("benchmark")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"output: {output} holds no result of this benchmark; remove it or name another") from error
    if earlier and all(_same(earlier[key]) == _same(result[key]) for key in ("settings", "machine")):
        say(f"{output}: going on after {len(earlier['points'])} points")
        result["points"] = earlier["points"]
    return result


def _same(content: Any) -> dict[str, Any]:
    """Return settings or machine without `-dirty` for comparison: writing the result makes the checkout dirty."""
    return {key: str(value).removesuffix("-dirty") for key, value in content.items()}


def measure_all(result: dict[str, Any], output: Path, *, quick: bool) -> None:
    """Measure the points that are missing in `result`, and write it after each."""
    wanted = dict.fromkeys(point for axis in AXES for point in points_of(axis, quick=quick))
    for index, point in enumerate(wanted, 1):
        if find(result["points"], point) is None:
            settings = result["settings"]
            measured = ask_child(__file__, "--point", json.dumps(asdict(point) | settings))
            result["points"].append(measured)
            write_json(output, result)
            figures = f"{measured['step_seconds']:.3f} s, {measured['peak_mib']:.0f} MiB"
            say(f"point {index} of {len(wanted)}: {', '.join(map(str, asdict(point).values()))}: {figures}")


def find(points: Sequence[dict[str, Any]], point: Point) -> dict[str, Any] | None:
    """Return the measurement of a point."""
    return next((measured for measured in points if asdict(point).items() <= measured.items()), None)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Fit `e` of `value = c * size^e` by least squares of the logarithms; its standard error is `spread`."""
    line = linregress([math.log(size) for size in sizes], [math.log(value) for value in values])
    return {"exponent": float(line.slope), "spread": float(line.stderr)}


def fit_axis(axis: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fit exponents of time and memory along one axis; return them and whether neither outgrows the FLOPs."""
    against = {"flops": [point["flops"] for point in points], "axis": [point[SIZES[axis]] for point in points]}
    fits: dict[str, Any] = {
        quantity: {name: exponent(sizes, [point[key] for point in points]) for name, sizes in against.items()}
        for quantity, key in QUANTITIES.items()
    }
    holds = all(fits[quantity]["flops"]["exponent"] <= 1 + TOLERANCE for quantity in QUANTITIES)
    return fits | {"values": [point[axis] for point in points], "holds": holds}


def table(axes: Mapping[str, Any]) -> str:
    """Format the exponents as a human-readable table."""

    def show(fit: Mapping[str, float]) -> str:
        return f"{fit['exponent']:.2f} ± {fit['spread']:.2f}"

    header = ("axis", "from", "to", "time ~ FLOPs^", "memory ~ FLOPs^", "time ~ axis^", "memory ~ axis^", "holds")
    rows = []
    for axis, fits in axes.items():
        cells = [show(fits[quantity][against]) for against in ("flops", "axis") for quantity in QUANTITIES]
        rows.append((axis, fits["values"][0], fits["values"][-1], *cells, "yes" if fits["holds"] else "NO"))
    return markdown(header, rows)


def title(result: Mapping[str, Any]) -> str:
    """Return a title: what was measured, and on which machine."""
    machine, dtype = result["machine"], result["settings"]["dtype"]
    where = machine["gpu"] or f"{machine['cpu_model']}, threads: {machine['threads']}"
    middle = ", ".join(short(axis, value) for axis, value in asdict(MIDDLE).items())
    return f"A ScaleKD training step in {dtype}, one setting varied at a time around {middle}\n{where}"


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Measure how time and memory of a ScaleKD training step grow with the FLOPs, one axis at a time.",
        epilog="exit codes: 0 nothing outgrows the FLOPs, 1 something does, 2 wrong input",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON; a rerun keeps what it holds")
    parser.add_argument("--picture", type=Path, metavar="FILE", help=".svg, .png, .pdf; default .svg beside the JSON")
    parser.add_argument("--quick", action="store_true", help="only the ends and the middle of each axis")
    parser.add_argument("--dtype", choices=DTYPES, help="default bf16 where the hardware multiplies in it")
    parser.add_argument("--steps", type=positive, default=5, help="measured steps a point, after one more; default 5")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)  # the child of `measure_all`
    args = parser.parse_args()
    if not (args.output or args.point):
        parser.error("output: name the JSON file to write, --output FILE")
    return args


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Measure, fit, draw and print; return 1 if something grows faster than the FLOPs."""
    check_output(args.output)
    picture = args.picture or args.output.with_suffix(".svg")
    check_output(picture)
    fastest = "bf16" if pick_dtype("auto", device) == torch.bfloat16 else "float32"
    settings = {"dtype": args.dtype or fastest, "steps": args.steps, "warmup": 1, "step": STEP}
    result = begin(args.output, settings, device)
    measure_all(result, args.output, quick=args.quick)
    along = {axis: [find(result["points"], p) or {} for p in points_of(axis, quick=args.quick)] for axis in AXES}
    result["tolerance"] = TOLERANCE
    result["axes"] = {axis: fit_axis(axis, points) for axis, points in along.items()}
    write_json(args.output, result)
    draw(picture, along, result["axes"], title(result))
    print(table(result["axes"]))
    outgrown = [axis for axis, fits in result["axes"].items() if not fits["holds"]]
    verdict = (
        f"grows faster than the FLOPs along {', '.join(outgrown)}" if outgrown else "grows no faster than the FLOPs"
    )
    print(f"A step {verdict}: exponents of time and memory against FLOPs, at most 1 + {TOLERANCE:g}; ± standard error.")
    return 1 if outgrown else 0


def main() -> int:
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if args.point:
            keys = {key: args.point[key] for key in Point.__dataclass_fields__}
            print(json.dumps(measure_point(Point(**keys), args.point["dtype"], args.point["steps"], device)))
            return 0
        return run(args, device)
    except UserError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
