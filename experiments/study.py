"""Tests the paper's claims on a small scale: a resumable grid of runs on Imagenette, one JSON file per run.

Usage: python experiments/study.py --data IMAGENETTE --teacher-weights WEIGHTS --runs FOLDER [--only NAME ...]
       python experiments/study.py --data IMAGENETTE --teacher-weights WEIGHTS --runs FOLDER --cost
       python experiments/study.py --collect
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

import torch
from script import check_runs, run, runs_parser, say
from study_cost import measure
from study_grid import FITTED, RESULTS, STRONG, Row, grid
from study_run import Study, share_of
from study_tables import collect

from scalekd.environment import describe_environment
from scalekd.errors import UserError


class Queue:
    """Hands out the rows in order; a row whose teacher is another row waits for it."""

    def __init__(self, rows: Sequence[Row], study: Study) -> None:
        self.left = [row for row in rows if not study.done(row)]
        self.there = {row.name for row in grid() if study.done(row)}
        self.busy: set[str] = set()
        self.changed = threading.Condition()

    def take(self) -> Row | None:
        """Return the next row that can run; None if no row is left."""
        with self.changed:
            while True:
                ready = [row for row in self.left if row.teacher in {None, STRONG, FITTED, *self.there}]
                if ready:
                    self.left.remove(ready[0])
                    self.busy.add(ready[0].name)
                    return ready[0]
                if not any(row.teacher in self.busy for row in self.left):
                    return None
                self.changed.wait()

    def give_back(self, row: Row, *, done: bool) -> None:
        with self.changed:
            self.busy.discard(row.name)
            self.there |= {row.name} if done else set()
            self.changed.notify_all()


def work(queue: Queue, study: Study, failed: list[str]) -> None:
    """Run rows until none is left; if a row fails, only the rows that depend on it do not run."""
    while (row := queue.take()) is not None:
        start = time.monotonic()
        try:
            study.run(row)
            say(f"{row.name}: done after {time.monotonic() - start:.0f} s; {len(queue.left)} to go")
        except UserError as error:
            failed.append(row.name)
            say(f"{row.name}: {error}")
        finally:
            queue.give_back(row, done=row.name not in failed)


def main() -> int:
    parser = runs_parser(__doc__, RESULTS)
    parser.add_argument("--cost", action="store_true", help="only measure what a training image costs by each method")
    parser.add_argument("--rounds", type=int, default=3, help="of --cost: measurements of each method, in turns (3)")
    parser.add_argument("--collect", action="store_true", help="only make the tables of the pages from the JSON files")
    args = parser.parse_args()
    if args.collect:
        collect(args.results)
        return 0
    rows = [row for row in grid() if any(fnmatch(row.name, pattern) for pattern in args.only)]
    if args.rounds < 1:
        parser.error("--rounds: pass at least 1")
    check_runs(parser, args)
    threads = 1 if args.cost else max(1, torch.get_num_threads() // args.jobs)
    study = Study(args.data, args.teacher_weights, args.runs.resolve(), args.results, threads)
    if args.cost:
        measure(study, args.rounds)
        return 0
    return run_all(study, rows, args.jobs)


def run_all(study: Study, rows: Sequence[Row], jobs: int) -> int:
    """Run the rows that have no result yet; return the exit code."""
    queue, failed = Queue(rows, study), list[str]()
    for percent in {row.share for row in rows}:  # here, not concurrently
        share_of(study.data, percent, study.runs / "data")
    say(f"{len(queue.left)} of {len(rows)} rows to run; revision {describe_environment()['git']}")
    with ThreadPoolExecutor(jobs) as pool:
        for job in [pool.submit(work, queue, study, failed) for _ in range(jobs)]:
            job.result()
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
