"""Shared code of the experiments' commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from scalekd.errors import UserError


def say(text: str) -> None:
    """Print to standard error; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def runs_parser(description: str | None, results: Path) -> argparse.ArgumentParser:
    """Return a parser with the options of every grid of runs on Imagenette.

    Args:
        description: The module's docstring, of which the first line is shown.
        results: Default folder of the JSON files.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="Imagenette as an image folder: train/<class>/, val/<class>/")
    parser.add_argument("--teacher-weights", type=Path, help="weights of recipe imagenette's teacher")
    parser.add_argument("--runs", type=Path, help="folder of the runs, caches and logs; those there are resumed")
    parser.add_argument("--results", type=Path, default=results, help="folder of the JSON files")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="rows, as patterns: 'cnn-*-s0'")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs (2)")
    return parser


def check_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments without data, weights or runs folder, and create the folders."""
    missing = [f"--{name.replace('_', '-')}" for name in ("data", "teacher_weights", "runs") if not vars(args)[name]]
    if missing:
        parser.error(f"pass {', '.join(missing)}")
    if args.jobs < 1:
        parser.error("--jobs: pass at least 1")
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; wrong input prints one line and exits with 2."""
    try:
        sys.exit(command())
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
