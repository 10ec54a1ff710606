"""Measures the cost per training image of each method of the study: time of the command, alternately, and FLOPs."""

from __future__ import annotations

import json
import statistics
from typing import Any

from script import say
from study_grid import STRONG, STUDENTS, Row, row
from study_run import Study, share_of

from scalekd.atomic import write_json
from scalekd.environment import describe_environment
from scalekd.planner import step_flops
from scalekd.recipes import load
from scalekd.tasks.distill.build import build_method, build_student, build_teacher

SHARE = 5  # percent of the training images: an epoch is 14 steps
CLASSES = 10
VARIANTS = (("none", False), ("kd", False), ("scalekd", False), ("kd", True), ("scalekd", True))


def name(method: str, cached: bool) -> str:
    return f"{method}, cached" if cached else method


def short_row(family: str, method: str) -> Row:
    return row(family, method, label="cost", share=SHARE, epochs=1)


def images_per_second(study: Study, family: str, method: str, *, cached: bool) -> float:
    """Return the speed of a run of one epoch, including data loading and optimiser, without start and validation."""
    short = short_row(family, method)
    folder = study.runs / "cost"
    cache = ["--cache", str(study.runs / "caches")] if cached else []
    weights = ["--teacher-weights", str(study.weights)] if short.teacher == STRONG else []
    settings = study.settings(short, [*weights, *cache])
    if cached:
        study.scalekd("cache", *settings, log="cost.cache")
    study.scalekd("distill", *settings, "--output", str(folder), "--overwrite", log="cost")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return float(next(line["images_per_second"] for line in lines if "images_per_second" in line))


def flops(study: Study, family: str, method: str) -> dict[str, int]:
    """Return the FLOPs per image of a training step, forward and backward: all, and those of the teacher's forward."""
    recipe = load("imagenette", study.keys(short_row(family, method)), say)
    teacher = None if method == "none" else build_teacher(recipe, pretrained=False, num_classes=CLASSES)
    found = step_flops(build_method(recipe, teacher, build_student(recipe, CLASSES)), batch=32)
    return {"total": found.total, "teacher": found.teacher}


def summary(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the time per image relative to training alone in the same round: median, minimum and maximum."""
    ratios = {
        name: [alone / one for alone, one in zip(rates["none"], found, strict=True)] for name, found in rates.items()
    }
    return {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in ratios.items()
    }


def measure(study: Study, rounds: int) -> None:
    """Measure all methods on all families of students, and write the result."""
    share_of(study.data, SHARE, study.runs / "data")
    families: dict[str, Any] = {}
    for family in STUDENTS:
        rates: dict[str, list[float]] = {name(*variant): [] for variant in VARIANTS}
        for number in range(rounds):
            for method, cached in VARIANTS if number % 2 else reversed(VARIANTS):
                rates[name(method, cached)].append(images_per_second(study, family, method, cached=cached))
            say(f"{family}, round {number + 1} of {rounds}: {json.dumps(summary_of_last(rates))}")
        counted = {method: flops(study, family, method) for method, cached in VARIANTS if not cached}
        families[family] = {"images_per_second": rates, "time_ratio": summary(rates), "flops": counted}
        content = {"families": families, "environment": describe_environment(), "threads": 1}
        write_json(study.results / "cost.json", content)  # what is there, should the next family not be finished


def summary_of_last(rates: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(rates["none"][-1] / found[-1], 2) for name, found in rates.items()}
