"""Compares predicted with measured memory of a training step; each measurement runs in a fresh process.

Usage: python benchmarks/memory.py [--output FILE]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from command import ask_child, say
from measurement import DTYPES, describe_machine
from pair import Pair, prepare

from scalekd.atomic import write_json
from scalekd.planner import measure, step_memory

PAIRS = (
    ("swin_tiny_patch4_window7_224", "resnet18", 16),
    ("vit_small_patch16_224", "mobilenetv1_100", 16),
    ("swin_small_patch4_window7_224", "resnet50", 8),
    ("swin_small_patch4_window7_224", "convnext_tiny", 8),
    # These two had no part in finding the overhead's constants.
    ("vit_base_patch16_224", "resnet34", 16),
    ("swin_large_patch4_window7_224", "mobilenetv1_100", 8),
)
STEPS = 8  # malloc's share of the peak still grows over the first few


def run_one(teacher: str, student: str, batch: int, dtype: str) -> dict[str, Any]:
    """Predict and measure one pair; the measurement is valid in a fresh process only."""
    method = Pair(teacher, student).method(torch.device("cpu"))
    prepare(method, DTYPES[dtype])
    predicted = step_memory(method, batch=batch, optimizer="adamw", ema=False, dtype=DTYPES[dtype])
    measured = measure(
        method,
        batch=batch,
        optimizer_factory=lambda module: torch.optim.AdamW(module.parameters()),
        dtype=DTYPES[dtype],
        steps=STEPS,
    )
    return {
        "teacher": teacher,
        "student": student,
        "batch": batch,
        "dtype": dtype,
        "predicted_bytes": {**vars(predicted), "total": predicted.total},
        "measured_bytes": measured.peak_bytes,
        "how": measured.how,
        "ratio": predicted.total / measured.peak_bytes,
        "images_per_second": measured.images_per_second,
    }


def run_all() -> dict[str, Any]:
    results = []
    for teacher, student, batch in PAIRS:
        for dtype in ("float32", "bf16"):
            result = ask_child(__file__, "--one", teacher, student, str(batch), dtype)
            results.append(result)
            say(f"{teacher} -> {student}, batch {batch}, {dtype}: ratio {result['ratio']:.3f}")
    return {
        "benchmark": "memory",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"steps": STEPS, "warmup": 1, "optimizer": "adamw", "channels_last": True, "device": "cpu"},
        "results": results,
        "machine": describe_machine(torch.device("cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted against measured memory of a training step on the CPU.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument("--one", nargs=4, metavar=("TEACHER", "STUDENT", "BATCH", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        teacher, student, batch, dtype = args.one
        print(json.dumps(run_one(teacher, student, int(batch), dtype)))
        return
    result = run_all()
    if args.output:
        write_json(args.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
