"""Predicted against measured memory of a training step, each measurement in a fresh process.

Usage: python benchmarks/memory.py [--output FILE]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measurement import DTYPES, describe_machine

from scalekd import ScaleKD, Student, Teacher
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
    """Predict and measure one pair; only in a fresh process is the measurement worth something."""
    torch.manual_seed(0)
    method = ScaleKD(Teacher(teacher, pretrained=False), Student(student))
    if dtype == "bf16":
        method.teacher.hold_weights(torch.bfloat16)
    method.student.model.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
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
            command = [sys.executable, __file__, "--one", teacher, student, str(batch), dtype]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(result := json.loads(child.stdout))
            print(f"{teacher} -> {student}, batch {batch}, {dtype}: ratio {result['ratio']:.3f}", file=sys.stderr)
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
    text = json.dumps(run_all(), indent=2)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
