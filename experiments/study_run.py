"""Runs one row of the study: its data, its commands, its result."""

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from study_grid import STRONG, Row

from scalekd.atomic import write_json
from scalekd.errors import UserError

# The same for all rows. One thread a run: two concurrent runs give more than one on both cores.
COMMON: dict[str, Any] = {"batch": 32, "workers": 0, "check_teacher": False}


def share_of(data: Path, percent: int, folder: Path) -> Path:
    """Create an image folder with links to `percent` of each class's training images and to all validation images.

    Smaller shares are subsets of larger ones.

    Raises:
        UserError: If the data is not an image folder.
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
    """Convert recipe keys to flags."""
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
    """Runs rows, each in its own processes."""

    def __init__(self, data: Path, weights: Path, runs: Path, results: Path, threads: int) -> None:
        self.data, self.weights, self.runs, self.results = data, weights, runs, results
        self.places: dict[str, str] = {}  # further paths of this machine, and what stands for them in a result
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.filling = threading.Lock()  # of the cache: runs that share one would wait for each other anyway

    def done(self, row: Row) -> bool:
        """Return whether this row has a result with its current settings."""
        file = self.results / f"{row.name}.json"
        if not file.is_file():
            return False
        there = json.loads(file.read_text("utf-8"))
        same = there["keys"] == json.loads(json.dumps(self.keys(row)))
        return bool(same and (there["share"], there["teacher"], there["probe"] is not None) == row.kind)

    def keys(self, row: Row) -> dict[str, Any]:
        """Return all recipe keys of a row except paths."""
        epochs = row.keys["epochs"]
        return COMMON | row.keys | {"validate_every": epochs, "warmup_epochs": math.ceil(epochs / 4) % epochs}

    def settings(self, row: Row, teacher: list[str]) -> list[str]:
        """Return a row's flags without its output."""
        return ["--recipe", "imagenette", "--data", str(self.images(row)), *flags(self.keys(row)), *teacher]

    def images(self, row: Row) -> Path:
        """Return the image folder of a row; it is created if it is missing."""
        return share_of(self.data, row.share, self.runs / "data")

    def teacher(self, row: Row) -> list[str]:
        """Return the flags of a row's teacher."""
        if row.teacher is None:
            return []
        if row.teacher == STRONG:
            return ["--teacher-weights", str(self.weights), "--cache", str(self.runs / "caches")]
        return ["--teacher", str(self.runs / row.teacher / "student.safetensors"), "--teacher-args", "{}"]

    def run(self, row: Row) -> None:
        """Train and measure a row, and write its result."""
        settings = self.settings(row, self.teacher(row))
        if "--cache" in settings:
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
            "command": shlex.join(["scalekd", *self.public(command)]),
            "result": result,
            "probe": probe,
            "cosines": last_cosines(folder / "metrics.jsonl"),
            "environment": json.loads((folder / "environment.json").read_text("utf-8")),
        }
        write_json(self.results / f"{row.name}.json", content)

    def public(self, command: Iterable[str]) -> list[str]:
        """Return a command without this machine's paths."""
        places = {str(self.runs): "runs", str(self.weights): "WEIGHTS", **self.places}
        found = list(command)
        for place, name in places.items():
            found = [name + part.removeprefix(place) if part.startswith(place) else part for part in found]
        return found

    def scalekd(self, *arguments: str, log: str) -> str:
        """Run a command and return its standard output; its standard error is kept in a file.

        Raises:
            UserError: If it fails; the message names that file.
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
    """Return the teacher-student cosines of a run's last log line that has them."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    found = [{key: value for key, value in line.items() if key.startswith("cosine/")} for line in lines]
    return next((line for line in reversed(found) if line), {})
