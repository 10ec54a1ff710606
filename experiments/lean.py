"""Which cheaper form of ScaleKD keeps its gain: accuracy of each form, one JSON file per run, resumable.

Usage: python experiments/lean.py --data IMAGENETTE --teacher-weights WEIGHTS --runs FOLDER [--only NAME ...]
       python experiments/lean.py --table [--step STEP.json]
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from lean_grid import FORMS, LONG, RESULTS, grid, lean_row
from script import check_runs, run, runs_parser, say
from study import run_all
from study_run import Study


def step_settings() -> dict[str, dict[str, Any]]:
    """Return the recipe keys of each form, as `benchmarks/whole_step.py --settings` takes them."""
    return {form: {key: value for key, value in keys.items() if key != "projectors"} for form, keys in FORMS.items()}


def table(results: Path, step: Path | None) -> str:
    """Format the accuracy of each form that has been run, and the time of its step if it was measured."""
    ratios = {} if step is None else json.loads(step.read_text("utf-8"))["ratios"]
    lines = ["| form | top-1 of each seed | step, labels only = 1 |", "|---|---|---|"]
    rows = [(form, lean_row(form).name) for form in FORMS]
    rows += [(f"{form}, {epochs} epochs", lean_row(form, epochs=epochs).name) for form, epochs in LONG]
    for form, name in rows:
        files = sorted(results.glob(f"{name.removesuffix('-s0')}-s[0-9].json"))
        if files:
            found = [json.loads(file.read_text("utf-8"))["result"]["top1"] for file in files]
            time = f"{ratios[form]['median']:.2f}" if form in ratios else ""
            lines.append(f"| {form} | {', '.join(f'{top1:.1f}' for top1 in found)} | {time} |")
    return "\n".join(lines)


def main() -> int:
    parser = runs_parser(__doc__, RESULTS)
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
    check_runs(parser, args)
    rows = [row for row in grid() if any(fnmatch(row.name, pattern) for pattern in args.only)]
    say(f"{len(rows)} rows")
    return run_all(Study(args.data, args.teacher_weights, args.runs.resolve(), args.results, 1), rows, args.jobs)


if __name__ == "__main__":
    run(main)
