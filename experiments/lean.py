"""Which cheaper form of ScaleKD keeps its gain: accuracy of each form, one JSON file per run, resumable.

Usage: python experiments/lean.py --data IMAGENETTE --teacher-weights WEIGHTS --runs FOLDER [--only NAME ...]
       python experiments/lean.py --table [--step STEP.json]
"""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from lean_grid import FORMS, RESULTS, lean_row, sieve
from script import run, say
from study import run_all
from study_run import Study


def step_settings() -> dict[str, dict[str, Any]]:
    """Return the recipe keys of each form, as `benchmarks/whole_step.py --settings` takes them."""
    return {form: {key: value for key, value in keys.items() if key != "projectors"} for form, keys in FORMS.items()}


def table(results: Path, step: Path | None) -> str:
    """Format the accuracy of each form that has been run, and the time of its step if it was measured."""
    ratios = {} if step is None else json.loads(step.read_text("utf-8"))["ratios"]
    lines = ["| form | top-1 of each seed | step, labels only = 1 |", "|---|---|---|"]
    for form in FORMS:
        files = sorted(results.glob(f"{lean_row(form).name.removesuffix('-s0')}-s[0-9].json"))
        if files:
            found = [json.loads(file.read_text("utf-8"))["result"]["top1"] for file in files]
            time = f"{ratios[form]['median']:.2f}" if form in ratios else ""
            lines.append(f"| {form} | {', '.join(f'{top1:.1f}' for top1 in found)} | {time} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="Imagenette as an image folder: train/<class>/, val/<class>/")
    parser.add_argument("--teacher-weights", type=Path, help="weights of recipe imagenette's teacher")
    parser.add_argument("--runs", type=Path, help="folder of the runs, caches and logs; those there are resumed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="rows, as patterns: 'cnn-exact-*'")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs, of one thread each (2)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--step", type=Path, help="JSON of benchmarks/whole_step.py with all forms, for the table")
    parser.add_argument("--settings", action="store_true", help="only print the forms' keys for whole_step.py")
    args = parser.parse_args()
    if args.settings:
        print(yaml.safe_dump(step_settings(), sort_keys=False))
        return 0
    if args.table:
        print(table(args.results, args.step))
        return 0
    missing = [f"--{name.replace('_', '-')}" for name in ("data", "teacher_weights", "runs") if not vars(args)[name]]
    if missing:
        parser.error(f"give {', '.join(missing)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    rows = [row for row in sieve() if any(fnmatch(row.name, pattern) for pattern in args.only)]
    say(f"{len(rows)} rows")
    return run_all(Study(args.data, args.teacher_weights, args.runs.resolve(), args.results, 1), rows, args.jobs)


if __name__ == "__main__":
    run(main)
