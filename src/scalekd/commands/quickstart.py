"""`scalekd quickstart`: train a teacher and its students on handwritten digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from math import ceil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import joblib
import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from scalekd.atomic import write_json
from scalekd.errors import Interrupted, UserError
from scalekd.methods.registry import METHODS
from scalekd.progress import plain_lines
from scalekd.recipes import Recipe, load
from scalekd.report.live import live_figures
from scalekd.tasks.distill import distill

_METHODS = {name: METHODS[name].label for name in ("none", "kd", "scalekd")}
TEACHER_SPLIT = "teacher"
PROCESSES = 4  # students trained at once, at most; each needs about 0.7 GB of memory


def run(output: Path, *, seeds: int, labelled: int, as_json: bool) -> None:
    """Train all models and print a table; see the command for the arguments."""
    say = plain_lines()
    figures = output / "quickstart.json"
    if figures.is_file():
        shutil.rmtree(output)
    elif output.is_file() or (output.exists() and any(output.iterdir())):
        raise UserError(f"output: {output} exists and is not a quickstart's folder; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_json(figures, {})  # marks the folder as a quickstart's
    sizes = write_digits(output / "data", labelled)
    say(
        f"digits: {sizes['teacher']} labelled images for the teacher; {sizes['train']} of them with a label and "
        f"{sizes['unlabelled']} without for the students; {sizes['val']} to test"
    )
    students = len(_METHODS) * seeds
    processes = min(students, PROCESSES, joblib.cpu_count())
    say(f"training the teacher (a minute), then {students} students, {processes} at once (half a minute each)")
    try:
        teacher, scores = _train(output, seeds, sizes, processes, say)
    except BrokenProcessPool as error:
        raise UserError("memory: the system stopped a student's process, probably because memory ran out") from error
    except Interrupted as stop:  # the message of the run in progress would tell how to resume that run only
        raise Interrupted("stopped; the same command starts the quickstart from scratch", stop.number) from None
    summary = {"teacher": teacher, "images": sizes, "students": scores}
    write_json(figures, summary)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print_table(summary, output)


def _train(
    output: Path, seeds: int, sizes: dict[str, int], processes: int, say: Callable[[str], None]
) -> tuple[float, dict[str, list[float]]]:
    """Train the teacher, and a student per method and seed; returns the teacher's top-1 and the students' by method.

    All students take about the same number of steps: those that learn from labels only see their images more often.
    """
    torch.set_num_threads(1)  # as its students do
    data = {"data": output / "data"}
    trained = distill(load("quickstart-teacher", data), output / "teacher", console=Console(quiet=True))
    say(f"teacher: top1 {trained['top1']:.1f}%")
    shared = data | {"teacher_weights": output / "teacher" / trained["student"]}
    scores: dict[str, list[float]] = {method: [0.0] * seeds for method in _METHODS}
    jobs = []
    for seed in range(seeds):
        for method in _METHODS:
            recipe = load("quickstart", shared | {"method": method, "seed": seed})
            jobs.append(joblib.delayed(_train_student)(longer(recipe, sizes) if method == "none" else recipe, output))
    for recipe, top1 in joblib.Parallel(n_jobs=processes, return_as="generator_unordered")(jobs):
        scores[recipe.method][recipe.seed] = top1
        say(f"seed {recipe.seed}: {_METHODS[recipe.method]}: top1 {top1:.1f}%")
    return trained["top1"], scores


def _train_student(recipe: Recipe, output: Path) -> tuple[Recipe, float]:
    """Train a student in a process of its own; returns its recipe and its top-1."""
    torch.set_num_threads(1)  # models this small gain nothing from more threads, and other students need the cores
    folder = output / f"{recipe.method}-seed{recipe.seed}"
    return recipe, distill(recipe, folder, console=Console(quiet=True), live=live_figures)["top1"]


def longer(recipe: Recipe, sizes: dict[str, int]) -> Recipe:
    """Return a recipe that takes as many steps on the labelled images as `recipe` takes on all; see `write_digits`."""
    times = (sizes["train"] + sizes["unlabelled"]) // recipe.batch / (sizes["train"] // recipe.batch)
    epochs = ceil(times * recipe.epochs)
    return recipe.model_copy(
        update={"epochs": epochs, "validate_every": epochs, "warmup_epochs": ceil(times * recipe.warmup_epochs)}
    )


def write_digits(folder: Path, labelled: int, seed: int = 0) -> dict[str, int]:
    """Write the digits as an image folder, enlarged from 8x8 to 32x32 pixels.

    Args:
        folder: Where to write `teacher` (70% of the digits, with labels), `train` (a part of these, with labels),
            `unlabelled` (the rest of these, in no class's folder) and `val`.
        labelled: Number of images in `train`.
        seed: Seed of the stratified splits.

    Returns:
        The number of images of each split.
    """
    digits = load_digits()
    everything = np.arange(len(digits.target))
    teacher, val = train_test_split(everything, test_size=0.3, random_state=seed, stratify=digits.target)
    rest, train = train_test_split(teacher, test_size=labelled, random_state=seed, stratify=digits.target[teacher])
    splits = {TEACHER_SPLIT: teacher, "train": train, "unlabelled": rest, "val": val}
    for name, indices in splits.items():
        for index in indices:
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            place = folder / name if name == "unlabelled" else folder / name / str(digits.target[index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{index}.png")
    return {name: len(indices) for name, indices in splits.items()}


def _print_table(summary: dict[str, Any], output: Path) -> None:
    images, students = summary["images"], summary["students"]
    seeds = len(students["none"])
    table = Table(title=f"top-1 on {images['val']} test digits")
    for column in ("model", "learned from", f"mean, {seeds} seeds", "deviation"):
        table.add_column(column, justify="left" if column in ("model", "learned from") else "right")
    table.add_row("teacher (ViT)", f"{images['teacher']} labels", f"{summary['teacher']:.1f}%", "one seed")
    for method, title in _METHODS.items():
        seen = f"{images['train']} labels"
        if method != "none":
            seen += f" + {images['unlabelled']} images"
        table.add_row(title, seen, f"{mean(students[method]):.1f}%", f"{stdev(students[method]):.1f}")
    out = Console()
    say = plain_lines(out)
    out.print(table)
    gains = {method: mean(students[method]) - mean(students["none"]) for method in ("kd", "scalekd")}
    say(
        f"With a teacher the same student, after as many steps, is {gains['kd']:+.1f} (KD) and "
        f"{gains['scalekd']:+.1f} (ScaleKD) points better: the teacher makes use of images without labels. "
        "Which method is better on your images, these tiny models on 8x8 scans do not show; see docs/choose.md.\n"
        f"Its runs are in {output}; look at one: scalekd report {output / 'scalekd-seed0'}"
    )
