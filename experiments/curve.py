"""Compares the losses of two runs that differ in their number format only, step by step.

Usage: python experiments/curve.py RUN RUN [--output FILE], for finished runs with `--log-every 1`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from script import run

from scalekd.atomic import write_json
from scalekd.errors import UserError

WINDOW = 20


def losses(folder: Path) -> list[float]:
    """Return the total loss of each step.

    Raises:
        UserError: If the folder holds no run.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"run: {folder} holds no run (no {file.name})")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def smoothed(values: list[float]) -> list[float]:
    """Return running means over `WINDOW` steps."""
    return [statistics.mean(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]


def compare(left: list[float], right: list[float]) -> dict[str, float]:
    """Return relative differences: the largest of a running mean, and the largest and the mean of a single step.

    Raises:
        UserError: If the runs differ in length or have fewer steps than the running mean needs.
    """
    if len(left) != len(right) or len(left) < WINDOW:
        raise UserError(f"run: {len(left)} and {len(right)} logged steps; equal numbers from {WINDOW} up are needed")
    single = [abs(one / two - 1) for one, two in zip(left, right, strict=True)]
    mean = [abs(one / two - 1) for one, two in zip(smoothed(left), smoothed(right), strict=True)]
    return {
        "steps": len(left),
        "running_mean_largest": max(mean),
        "step_largest": max(single),
        "step_mean": statistics.mean(single),
        "first_loss": right[0],
        "last_loss": right[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the losses of two runs step by step.")
    parser.add_argument("runs", type=Path, nargs=2, help="run folders; the second is the reference")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    args = parser.parse_args()
    found = compare(*map(losses, args.runs))
    recipes: list[dict[str, Any]] = [
        yaml.safe_load((folder / "recipe.yaml").read_text("utf-8")) for folder in args.runs
    ]
    keys = {key for recipe in recipes for key in recipe} - {"data", "teacher_weights"}
    differing = {
        key: [recipe.get(key) for recipe in recipes] for key in keys if recipes[0].get(key) != recipes[1].get(key)
    }
    shared = {key: recipes[0].get(key) for key in sorted(keys - set(differing))}
    environments = [json.loads((folder / "environment.json").read_text("utf-8")) for folder in args.runs]
    result = {"benchmark": "curve", **found, "differing": differing, "recipe": shared, "environments": environments}
    if args.output:
        write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key not in ("recipe", "environments")}, indent=2))
    return 0


if __name__ == "__main__":
    run(main)
