"""Compares whole training steps: loading, forward, backward, optimiser and logging, of several settings of one pair.

Usage: python benchmarks/whole_step.py --teacher T --student S [--output FILE]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from command import Parser, check_output, positive, say
from measurement import DTYPES, describe_machine
from PIL import Image
from timm.task import FeatureDistillationTask
from torch import Tensor, nn
from torch.optim import AdamW

from scalekd.atomic import write_json
from scalekd.data import Batch, CorruptImages, TrainingStream, read_split, training_loader
from scalekd.data.cache import CacheReader, Identity, Layout, TeacherCache, fill, list_images
from scalekd.engine.optimisation import build_optimizer, build_schedule
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.methods.outputs import TeacherOutputs
from scalekd.methods.share import FeatureShare
from scalekd.models import Teacher
from scalekd.models.memory_format import prepare, prepare_teacher
from scalekd.planner import step_flops
from scalekd.recipes import Recipe, load
from scalekd.runs.logs import JsonLines
from scalekd.tasks.distill.build import build_method, build_student, build_teacher
from scalekd.tasks.distill.inputs import training_images
from scalekd.tasks.distill.task import DistillationTask, StudentLearner

CPU = torch.device("cpu")
STEP = "reading images and cache, forward, all losses, backward, optimiser step, log lines"
# Name: recipe keys; each reads the teacher's outputs from one cache unless `live` is set.
SETTINGS: dict[str, dict[str, Any]] = {
    "labels only": {"method": "none"},
    "kd, cached": {"method": "kd"},
    "fd with logits, cached": {"method": "fd", "logit_weight": 0.5},
    "lean, cached": {"lean": True},
    "linear projectors with TPP, cached": {"projector": "linear"},
    "a quarter of the images and 1x1 stems, cached": {"feature_share": 0.25, "stem": "conv1x1"},
    "1x1 stems, cached": {"stem": "conv1x1"},
    "exact, cached": {},
    "exact, live": {"live": True},
    "timm's feature task, live": {"timm": True},
}
LONG = 10_000  # epochs: more than any measurement takes

Step = Callable[[], None]


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", required=True, help="timm name")
    parser.add_argument("--student", required=True, help="timm name")
    parser.add_argument("--batch", type=positive, default=32, help="images a step, default 32")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--resolution", type=positive, default=224, help="image side in pixels, default 224")
    parser.add_argument("--num-classes", type=positive, default=10, help="default 10")
    parser.add_argument("--rounds", type=positive, default=5, help="measured steps of each setting, default 5")
    parser.add_argument("--settings", type=Path, help="YAML file: name of each setting to its recipe keys")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings to measure; ratios are to the first")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    return parser.parse_args()


class Bench:
    """A teacher, a few images in a folder, and a cache of the teacher's outputs for them.

    Args:
        args: The command's arguments.
        folder: An empty folder.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.dtype = args, folder, DTYPES[args.dtype]
        draw_images(folder / "data", 2 * args.batch, args.num_classes, args.resolution)
        self.split = read_split(folder / "data", "train")
        torch.manual_seed(0)
        self.teacher = build_teacher(self.recipe({}), pretrained=False, num_classes=args.num_classes)
        prepare_teacher(self.teacher, CPU, self.dtype)
        self.cache = self._fill()

    def recipe(self, keys: dict[str, Any]) -> Recipe:
        """Return the recipe of a setting."""
        names = ("teacher", "student", "batch", "resolution")
        shared: dict[str, Any] = {name: getattr(self.args, name) for name in names}
        shared |= {"micro_batch": self.args.batch, "epochs": LONG, "augmentation_epochs": 1, "workers": 0}
        return load(None, shared | {"teacher_resolution": self.args.resolution} | keys)

    def _fill(self) -> TeacherCache:
        tokens = self.teacher.tokens
        layout = Layout(tokens.positions, tokens.channels, self.teacher.num_classes, self.dtype, "bf16")
        identity = Identity({}, list_images(self.split))
        cache = identity.cache(self.folder / "caches", layout)
        cache.create(identity.ingredients, identity.listing)
        fill(
            cache,
            training_images(self.recipe({}), self.split),
            partial(ask, self.teacher, self.dtype),
            views=1,
            batch=self.args.batch,
            workers=0,
            corrupt=CorruptImages(0),
            progress=lambda *_: None,
        )
        return cache

    def batches(self, recipe: Recipe, *, cached: bool) -> Iterator[Batch]:
        """Load the batches of a run."""
        share = FeatureShare(recipe.feature_share)
        stream = TrainingStream(size=len(self.split), batch=recipe.batch, epochs=LONG, seed=0, views=1, share=share)
        reader = CacheReader(self.cache, recipe.stored_share) if cached else None
        return iter(training_loader(training_images(recipe, self.split, reader), stream, 0))


def draw_images(folder: Path, count: int, classes: int, side: int) -> None:
    """Write smooth random JPEG images, a third larger than the crop, to `train/<class>/`."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / "train" / f"{number % classes:03}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")


def ask(teacher: Teacher, dtype: torch.dtype, images: Tensor) -> TeacherOutputs:
    """Run the teacher as in training."""
    with autocast(CPU, dtype):
        outputs: TeacherOutputs = teacher(images)
    return outputs


def scalekd_step(bench: Bench, keys: dict[str, Any], log: Path) -> tuple[Step, dict[str, int]]:
    """Build a run of the package; return its next step, and its FLOPs for one image by part."""
    live = keys.pop("live", False)
    recipe = bench.recipe(keys)
    torch.manual_seed(0)
    teacher = bench.teacher if recipe.method != "none" else None
    method = build_method(recipe, teacher, build_student(recipe, bench.args.num_classes)).train()
    flops = step_flops(method)
    prepare(method, CPU, bench.dtype, channels_last=recipe.channels_last)
    optimizer = build_optimizer(recipe, method)
    learner = StudentLearner(
        recipe,
        method,
        optimizer=optimizer,
        schedule=build_schedule(recipe, optimizer, steps_per_epoch=2),
        logs=(JsonLines(log),),
    )
    task = DistillationTask([learner], (), CorruptImages(0))
    batches = enumerate(bench.batches(recipe, cached=teacher is not None and not live))

    def step() -> None:
        index, batch = next(batches)
        with autocast(CPU, bench.dtype):
            prepared = task.prepare(batch, index)
            loss = learner.compute_loss(partial(task.losses, learner, prepared), index=index, step=index + 1)
        if (index + 1) % recipe.log_every == 0:
            learner.log_training(index + 1)
        torch.autograd.backward(loss)
        learner.optimizer_step(index + 1)

    parts = {name: getattr(flops, name) for name in ("teacher", "student", "cap", "tail")}
    return step, parts if live else parts | {"teacher": 0}


def timm_step(bench: Bench) -> tuple[Step, dict[str, int]]:
    """Build timm's own task on the same pair and precision, with AdamW and channels-last weights."""
    recipe = bench.recipe({})
    torch.manual_seed(0)
    student = build_student(recipe, bench.args.num_classes).model.to(memory_format=torch.channels_last)
    task = FeatureDistillationTask(
        student, bench.teacher.model, criterion=nn.CrossEntropyLoss(), device=CPU, verbose=False
    ).train()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    batches = bench.batches(recipe, cached=False)

    def step() -> None:
        batch = next(batches)
        with autocast(CPU, bench.dtype):
            loss = task(batch.images, batch.labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, {}


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Measure one step of each setting in turn, after one warm-up step of each; return the seconds of each step."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        names = list(steps) if number % 2 else list(reversed(steps))
        for name in names:
            started = time.perf_counter()
            steps[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
        say(f"round {number} of {rounds}" + ("" if number else " (warm-up)"))
    return seconds


def ratios(seconds: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Return each setting's time over that of `to` in the same round: median, least, most."""
    found = {}
    for name, own in seconds.items():
        each = [one / other for one, other in zip(own, seconds[to], strict=True)]
        found[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build all settings, measure them, and return the result.

    Raises:
        UserError: If a setting cannot be built.
    """
    load_before = os.getloadavg()
    keep_freed_memory()
    settings = SETTINGS if args.settings is None else yaml.safe_load(args.settings.read_text("utf-8"))
    if unknown := [name for name in args.only or () if name not in settings]:
        raise UserError(f"only: {unknown[0]!r} is not one of {', '.join(settings)}")
    settings = {name: settings[name] for name in args.only or settings}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        bench = Bench(args, folder)
        steps, flops = {}, {}
        for number, (name, keys) in enumerate(settings.items()):
            if keys.get("timm"):
                steps[name], flops[name] = timm_step(bench)
            else:
                steps[name], flops[name] = scalekd_step(bench, dict(keys), folder / f"{number}.jsonl")
        seconds = measure(steps, args.rounds)
    first = next(iter(settings))
    return {
        "benchmark": "whole_step",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {k: v for k, v in vars(args).items() if k not in ("output", "settings", "only")} | {"step": STEP},
        "measured": settings,
        "ratio_to": first,
        "ratios": ratios(seconds, first),
        "step_seconds": seconds,
        "flops_per_image": flops,
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": describe_machine(CPU),
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as a Markdown table."""
    lines = [f"| setting | time, {result['ratio_to']} = 1 | GFLOP an image |", "|---|---|---|"]
    for name, ratio in result["ratios"].items():
        flops = sum(result["flops_per_image"][name].values()) / 1e9
        count = f"{flops:.2f}" if flops else ""
        lines.append(f"| {name} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {count} |")
    return "\n".join(lines)


def main() -> int:
    args = parse_arguments()
    try:
        check_output(args.output)
        result = run(args)
    except UserError as error:
        say(f"error: {error}")
        return 2
    if args.output:
        write_json(args.output, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
