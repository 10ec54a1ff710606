"""The paper's claims in small: a grid of runs on Imagenette, resumable, a JSON file a run.

Usage: python benchmarks/study.py --data IMAGENETTE --teacher-weights WEIGHTS --runs FOLDER [--jobs 2] [--only NAME ...]
       python benchmarks/study.py --collect
"""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from command import Parser, positive, say, write_json
from study_grid import RESULTS, STRONG, Row, grid
from study_tables import collect

from scalekd.environment import describe_environment
from scalekd.errors import UserError

# The same for all rows. One thread a run: two runs beside each other give more than one on both cores.
COMMON: dict[str, Any] = {"batch": 32, "workers": 0, "check_teacher": False}


def share_of(data: Path, percent: int, folder: Path) -> Path:
    """An image folder with links to `percent` of each class's training images, and to all validation images.

    Smaller shares are parts of larger ones.

    Raises:
        UserError: If the data is no image folder.
    """
    if not (data / "train").is_dir() or not (data / "val").is_dir():
        raise UserError(f"data: {data} has no folders train and val")
    made = folder / f"{percent}"
    if not made.is_dir():
        partial = folder / f"{percent}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for kind in sorted(path for path in (data / "train").iterdir() if path.is_dir()):
            images = sorted(kind.iterdir())
            random.Random(0).shuffle(images)
            (partial / "train" / kind.name).mkdir(parents=True)
            for image in images[: round(len(images) * percent / 100)]:
                (partial / "train" / kind.name / image.name).symlink_to(image.resolve())
        (partial / "val").symlink_to((data / "val").resolve())
        partial.rename(made)
    return made


def flags(keys: dict[str, Any]) -> list[str]:
    """Recipe keys as flags."""
    found = []
    for key, value in keys.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            found += [f"--{name}" if value else f"--no-{name}"]
        elif isinstance(value, list):
            found += [f"--{name}", ",".join(map(str, value))]
        else:
            found += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


class Study:
    """Runs rows, each in processes of its own."""

    def __init__(self, data: Path, weights: Path, runs: Path, results: Path, threads: int) -> None:
        self.data, self.weights, self.runs, self.results = data, weights, runs, results
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.filling = threading.Lock()  # of the cache: runs that share one would wait for each other anyway

    def done(self, row: Row) -> bool:
        """Whether there is a result of this row, with the settings that it has today."""
        file = self.results / f"{row.name}.json"
        if not file.is_file():
            return False
        there = json.loads(file.read_text("utf-8"))
        same = there["keys"] == json.loads(json.dumps(self.keys(row)))
        return bool(same and (there["share"], there["teacher"], there["probe"] is not None) == row.kind)

    def keys(self, row: Row) -> dict[str, Any]:
        """All recipe keys of a row but places."""
        epochs = row.keys["epochs"]
        return COMMON | row.keys | {"validate_every": epochs, "warmup_epochs": math.ceil(epochs / 4) % epochs}

    def settings(self, row: Row, teacher: list[str]) -> list[str]:
        """A row's flags, but for its output."""
        data = share_of(self.data, row.share, self.runs / "data")
        return ["--recipe", "imagenette", "--data", str(data), *flags(self.keys(row)), *teacher]

    def _teacher(self, row: Row) -> list[str]:
        if row.teacher is None:
            return []
        if row.teacher == STRONG:
            return ["--teacher-weights", str(self.weights), "--cache", str(self.runs / "caches")]
        return ["--teacher", str(self.runs / row.teacher / "student.safetensors"), "--teacher-args", "{}"]

    def run(self, row: Row) -> None:
        """Train and measure a row, and write its result."""
        settings = self.settings(row, self._teacher(row))
        if row.teacher == STRONG:
            with self.filling:
                self.scalekd("cache", *settings, log=f"{row.name}.cache")
        folder = self.runs / row.name
        command = ("distill", *settings, "--output", str(folder), "--auto-resume", "--json")
        result: dict[str, Any] = json.loads(self.scalekd(*command, log=row.name))
        probe = None
        if row.probe:
            found = self.scalekd("evaluate", str(folder), "--linear", "--json", log=f"{row.name}.probe")
            probe = json.loads(found)["models"][0]["linear"]
        content = {
            "name": row.name,
            "family": row.family,
            "share": row.share,
            "teacher": row.teacher,
            "keys": self.keys(row),
            "command": shlex.join(["scalekd", *self._public(command)]),
            "result": result,
            "probe": probe,
            "cosines": last_cosines(folder / "metrics.jsonl"),
            "environment": json.loads((folder / "environment.json").read_text("utf-8")),
        }
        write_json(self.results / f"{row.name}.json", content)

    def _public(self, command: Iterable[str]) -> list[str]:
        """A command without this machine's places."""
        places = {str(self.runs): "runs", str(self.weights): "WEIGHTS"}
        found = list(command)
        for place, name in places.items():
            found = [name + part.removeprefix(place) if part.startswith(place) else part for part in found]
        return found

    def scalekd(self, *arguments: str, log: str) -> str:
        """Standard output of a command; what it says on the way is kept in a file.

        Raises:
            UserError: If it fails; names that file.
        """
        file = self.runs / f"{log}.log"
        with file.open("a") as stream:
            child = subprocess.run(
                [sys.executable, "-m", "scalekd", *arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                check=False,
            )
        if child.returncode:
            raise UserError(f"{arguments[0]}: exit code {child.returncode}; see {file}")
        return child.stdout


def last_cosines(metrics: Path) -> dict[str, float]:
    """The teacher-student cosines of a run's last log line that has them."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    found = [{key: value for key, value in line.items() if key.startswith("cosine/")} for line in lines]
    return next((line for line in reversed(found) if line), {})


class Queue:
    """Hands out the rows in order; a row whose teacher is another row waits for it."""

    def __init__(self, rows: list[Row], study: Study) -> None:
        self.left = [row for row in rows if not study.done(row)]
        self.there = {row.name for row in grid() if study.done(row)}
        self.busy: set[str] = set()
        self.changed = threading.Condition()

    def take(self) -> Row | None:
        """The next row that can run; None when there is none any more."""
        with self.changed:
            while True:
                ready = [row for row in self.left if row.teacher in {None, STRONG, *self.there}]
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
    """Run rows until there are none; one that fails keeps only those that build on it from running."""
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
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="Imagenette as an image folder: train/<class>/, val/<class>/")
    parser.add_argument("--teacher-weights", type=Path, help="weights of recipe imagenette's teacher")
    parser.add_argument("--runs", type=Path, help="folder of the runs, caches and logs; those there are gone on with")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="rows, as patterns: 'cnn-*-s0'")
    parser.add_argument("--jobs", type=positive, default=2, help="runs beside each other (2)")
    parser.add_argument("--collect", action="store_true", help="only make the tables of the pages from the JSON files")
    args = parser.parse_args()
    if args.collect:
        collect(args.results)
        return 0
    rows = [row for row in grid() if any(fnmatch(row.name, pattern) for pattern in args.only)]
    missing = [f"--{name.replace('_', '-')}" for name in ("data", "teacher_weights", "runs") if not vars(args)[name]]
    if missing:
        parser.error(f"give {', '.join(missing)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    threads = max(1, torch.get_num_threads() // args.jobs)
    study = Study(args.data, args.teacher_weights, args.runs.resolve(), args.results, threads)
    queue, failed = Queue(rows, study), list[str]()
    for percent in {row.share for row in rows}:  # here, not beside one another
        share_of(args.data, percent, study.runs / "data")
    say(f"{len(queue.left)} of {len(rows)} rows to run; revision {describe_environment()['git']}")
    with ThreadPoolExecutor(args.jobs) as pool:
        for job in [pool.submit(work, queue, study, failed) for _ in range(args.jobs)]:
            job.result()
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
