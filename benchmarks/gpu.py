"""The GPU checklist: three pairs measured on one GPU in under 9 minutes, by one command.

Usage: python benchmarks/gpu.py --output FILE [--tiny]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import Parser, check_output, positive, say
from gpu_parts import Scale, compiled, eager
from measurement import describe_machine
from pair import STEP, Pair
from report import markdown

from scalekd.atomic import write_json
from scalekd.errors import UserError

PAIRS = {
    "Swin-L -> ResNet-50": Pair("swin_large_patch4_window7_224", "resnet50"),
    "Swin-L -> ViT-S/16": Pair("swin_large_patch4_window7_224", "vit_small_patch16_224"),
    "ViT-S/14 -> MobileNet-V1": Pair("vit_small_patch14_dinov2", "mobilenetv1_100"),
}
TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8)}
TINY_VIT = {"patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2}
TINY_CNN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
TINY_PAIRS = {
    "tiny Swin -> tiny ResNet": Pair("swin_tiny_patch4_window7_224", "resnet18", 64, 10, TINY_SWIN, TINY_CNN),
    "tiny Swin -> tiny ViT": Pair("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", 64, 10, TINY_SWIN, TINY_VIT),
    "tiny ViT -> MobileNet-V2 x0.35": Pair("vit_tiny_patch16_224", "mobilenetv2_035", 64, 10, TINY_VIT),
}
SCALE = Scale(batch=64, warmup=5, steps=20, matmul_size=8192, backend="inductor")
TINY_SCALE = Scale(batch=4, warmup=1, steps=4, matmul_size=256, backend="aot_eager")  # needs no compiler
TASKS = {"eager": eager, "compile": compiled}
LEAST = 20  # seconds below which no further process is worth starting

Record = Callable[[str, dict[str, Any]], None]


def read(output: Path) -> dict[str, Any]:
    """Return the result so far."""
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def recorder(output: Path, name: str) -> Record:
    """Return a function that adds results of a pair to the file, keeping those in it. One process writes at a time."""

    def record(part: str, value: dict[str, Any]) -> None:
        result = read(output)
        if part in result["pairs"][name]:
            return  # the process was stopped, but after its work
        result["pairs"][name][part] = value
        write_json(output, result)
        say(f"{name}: {part} {value.get('failed') or value.get('skipped') or 'done'}")

    return record


def run_child(name: str, task: str, seconds: float, record: Record) -> None:
    """Run one task of one pair in a separate process, so that memory is fresh and crashes and time are contained."""
    if seconds < LEAST:
        record(task, {"skipped": f"{max(seconds, 0):.0f} s of the time were left"})
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name, task]
    try:
        code = subprocess.run(command, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        record(task, {"skipped": f"stopped after {seconds:.0f} s: the time was used up"})
        return
    if code:
        record(task, {"failed": f"the process ended with exit code {code}"})


def be_child(pairs: Mapping[str, Pair], scale: Scale, args: argparse.Namespace, device: torch.device) -> None:
    """Run the task; a failure on this GPU, such as a lack of memory, is also recorded as a result."""
    name, task = args.child
    record = recorder(args.output, name)
    try:
        TASKS[task](pairs[name], scale, device, record)
    except Exception as error:
        record(task, {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})


def conduct(pairs: Mapping[str, Pair], scale: Scale, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Run all tasks while there is time: compilation last, the cheapest pair first."""
    start = time.monotonic()
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(scale) | {"dtype": "bf16", "budget_seconds": args.seconds, "step": STEP},
        "machine": describe_machine(device),
        "pairs": {name: {"models": asdict(pair)} for name, pair in pairs.items()},
    }
    write_json(args.output, result)
    tasks = [(name, task) for task, names in (("eager", list(pairs)), ("compile", list(pairs)[::-1])) for name in names]
    for name, task in tasks:
        run_child(name, task, start + args.seconds - time.monotonic(), recorder(args.output, name))
    result = read(args.output)
    result["seconds"] = time.monotonic() - start
    write_json(args.output, result)
    return result


def table(result: Mapping[str, Any]) -> str:
    """Format the result as a human-readable table, one column per pair."""

    def show(times: Mapping[str, float]) -> str:
        return f"{1000 * times['seconds']:.1f} ({1000 * times['min']:.1f} to {1000 * times['max']:.1f})"

    def sheet(found: Mapping[str, Any] | None) -> str:
        return f"{found['fraction']:.1%} of {found['peak_tflops']:.0f}" if found else "no data sheet"

    lines: dict[str, tuple[str, Callable[[Any], str]]] = {
        "step, ms: median (min to max)": ("speed", show),
        "images/s": ("speed", lambda speed: f"{speed['images_per_second']:.1f}"),
        "TFLOP/s": ("speed", lambda speed: f"{speed['tflops']:.4g}"),
        "of the peak measured, TFLOP/s": (
            "speed",
            lambda speed: f"{speed['fraction_of_peak']:.1%} of {speed['matmul_peak_tflops']:.4g}",
        ),
        "of the data sheet's, TFLOP/s": ("speed", lambda speed: sheet(speed["data_sheet"])),
        "peak memory, MiB": ("memory", lambda memory: f"{memory['peak_mib']:.0f}"),
        "compiled: step, ms": ("compile", lambda compiled: show(compiled["compiled"])),
        "compiled: times as fast": ("compile", lambda compiled: f"{compiled['speedup']:.2f}"),
        "compiled: first step, s": ("compile", lambda compiled: f"{compiled['compile_seconds']:.1f}"),
        "cached: step, ms": ("cache", lambda cache: show(cache["cached"])),
        "cached: times as fast": ("cache", lambda cache: f"{cache['speedup']:.2f}"),
        "bf16 - float32: loss, relative": ("agreement", lambda found: f"{found['loss']['total']:.1e}"),
        "bf16, float32: least cosine of gradients": (
            "agreement",
            lambda found: f"{min(part['cosine'] for part in found['gradient'].values()):.4f}",
        ),
    }

    def cell(parts: Mapping[str, Any], part: str, read: Callable[[Any], str]) -> str:
        found = parts.get(part) or parts["eager"]  # a task that broke off left a reason instead
        return next((key for key in ("failed", "skipped") if key in found), "") or read(found)

    pairs = result["pairs"]
    rows = [(label, *(cell(parts, *how) for parts in pairs.values())) for label, how in lines.items()]
    return markdown(("", *pairs), rows)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Measure three pairs on one GPU: speed, utilisation, memory, torch.compile, bf16, the cache.",
        epilog="exit codes: 0 done (what there was no time for is skipped), 1 something failed, 2 wrong input",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="the JSON, written as results come")
    parser.add_argument("--batch", type=positive, help=f"images a step; default {SCALE.batch}")
    parser.add_argument("--seconds", type=positive, default=500, help="end after about this time; default 500")
    parser.add_argument("--tiny", action="store_true", help="try all of it on the CPU, with tiny models, in a minute")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    pairs, scale = (TINY_PAIRS, TINY_SCALE) if args.tiny else (PAIRS, SCALE)
    scale = replace(scale, batch=args.batch or scale.batch)
    device = torch.device("cpu" if args.tiny else "cuda")
    try:
        check_output(args.output)
        if not args.tiny and not torch.cuda.is_available():
            raise UserError("device: there is no CUDA GPU here; --tiny tries the checklist on the CPU")
    except UserError as error:
        say(f"error: {error}")
        return 2
    if args.child:
        be_child(pairs, scale, args, device)
        return 0
    result = conduct(pairs, scale, args, device)
    print(table(result))
    print(f"{result['seconds']:.0f} s on {result['machine']['gpu'] or 'the CPU'}")
    return int(any("failed" in part for parts in result["pairs"].values() for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
