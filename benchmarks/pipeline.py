"""Measures images per second of the input pipeline alone: reading, decoding, crop, flip and batching, in several ways.

Usage: python benchmarks/pipeline.py --data FOLDER [options]; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import Parser, check_output, say
from measurement import DTYPES, describe_machine
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from scalekd import Student
from scalekd.atomic import write_json
from scalekd.data import (
    Files,
    Key,
    ReplayDataset,
    Split,
    TrainingStream,
    read_unlabelled,
    training_loader,
    training_transform,
)
from scalekd.data.augmentation import Transform, random_crop, to_float
from scalekd.data.decoding import OpenedImage, read_crop, resize
from scalekd.data.loader import collate
from scalekd.data.orientation import Box
from scalekd.errors import UserError
from scalekd.methods.none import Supervised
from scalekd.planner import measure

NEVER = 10**6


def pil_crop(image: OpenedImage, box: Box, side: int) -> Tensor:
    """Decode in full, crop and resize with PIL, as timm and torchvision do."""
    resized = image.stored.convert("RGB").crop(box).resize((side, side), Image.Resampling.BICUBIC)
    tensor: Tensor = F.pil_to_tensor(resized)
    return tensor


def native_crop(image: OpenedImage, box: Box, side: int) -> Tensor:
    """Decode with torchvision, which can decode in full only."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file  # noqa: PLC0415  # deprecated since 0.29

    left, upper, right, lower = box
    pixels = decode_jpeg(read_file(image.stored.filename), ImageReadMode.RGB)  # type: ignore[attr-defined]
    return resize(pixels[:, upper:lower, left:right], [side, side])


# `ours` is the package's own transform; the others share all but how the crop's pixels are read.
READERS: dict[str, Callable[[OpenedImage, Box, int], Tensor] | None] = {
    "ours": None,
    "pil": pil_crop,
    "full": partial(read_crop, remain=NEVER),
    "just_enough": partial(read_crop, remain=1),
    "native": native_crop,
}


def parse_arguments() -> argparse.Namespace:
    def size(text: str) -> tuple[int, int]:
        width, _, height = text.partition("x")
        return int(width), int(height)

    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of JPEG files, in any subfolders")
    parser.add_argument("--images", type=int, default=256, help="images of it to use, evenly spread; default 256")
    parser.add_argument("--generate", type=size, metavar="WxH", help="first enlarge them to this size, into --into")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="folder for what --generate makes")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[112, 224], help="default 112 224")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--batch", type=int, default=16, help="default 16")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way, alternating; default 5")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for machines that others use; needs --workers 0"
    )
    parser.add_argument("--student", help="also measure the training step of this timm model, method none")
    parser.add_argument("--student-batch", type=int, default=64, help="images a step; default 64")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the step; default bf16")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    args = parser.parse_args()
    if (args.generate is None) != (args.into is None):
        parser.error("--generate and --into go together")
    if args.cpu_time and args.workers != [0]:
        parser.error("--cpu-time is of one process: add --workers 0")
    return args


def choose_images(args: argparse.Namespace) -> Split:
    """Return the images to read: some of `--data`, enlarged if `--generate` is set.

    Raises:
        UserError: If the folder is missing, holds no image, or fewer than three batches of them.
    """
    split = read_unlabelled(args.data.parent, args.data.name)
    paths = [split.locate(index) for index in range(len(split))][:: max(1, len(split) // args.images)][: args.images]
    if len(paths) < 3 * args.batch:
        raise UserError(f"data: {args.data} has {len(paths)} images to use; three batches of {args.batch} are needed")
    if args.generate:
        args.into.mkdir(parents=True, exist_ok=True)
        sources, paths = paths, [str(args.into / f"{index}.jpg") for index in range(len(paths))]
        for source, path in zip(sources, paths, strict=True):
            with Image.open(source) as image:
                image.convert("RGB").resize(args.generate, Image.Resampling.BICUBIC).save(path, quality=90)
    return Split(Files(Path("/"), paths), np.zeros(len(paths), np.int32), ("any",))


def transform(name: str, side: int) -> Transform:
    """Return the training transform with one way of reading the crop."""
    reader = READERS[name]
    if reader is None:
        return training_transform(side)
    crop = partial(random_crop, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), side=side, read=reader)
    composed: Transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), to_float])
    return composed


def rate(split: Split, name: str, side: int, workers: int, args: argparse.Namespace) -> float:
    """Return the images per second of one pass, without the first batches of the workers."""
    dataset = ReplayDataset(split, transform(name, side), substitute=True)
    stream = TrainingStream(size=len(split), batch=args.batch, epochs=1, seed=0)
    batches = iter(training_loader(dataset, stream, workers))
    first = max(1, workers)
    for _ in range(first):
        next(batches)
    clock = time.process_time if args.cpu_time else time.perf_counter
    start = clock()
    count = sum(len(b.images) for b in batches)
    return count / (clock() - start)


def differences(split: Split, name: str, side: int) -> dict[str, float]:
    """Return how the images differ from PIL's, in units of 1/255, over one epoch with the same random draws."""
    ours, plain = (ReplayDataset(split, transform(which, side)) for which in (name, "pil"))
    rows = []
    for index in range(len(split)):
        a, b = (255 * collate([dataset[Key(0, index)]]).images[0] for dataset in (ours, plain))
        means, stds = a.mean((1, 2)) - b.mean((1, 2)), a.std((1, 2)) / b.std((1, 2)).clamp(min=1)
        rows.append(((a - b).abs().mean().item(), means.abs().mean().item(), stds.mean().item()))
    names = ("mean_absolute_difference", "channel_mean_difference", "channel_std_ratio")
    return {key: statistics.mean(column) for key, column in zip(names, zip(*rows, strict=True), strict=True)}


def measure_setting(split: Split, side: int, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the ways alternately, starting with another one each time; ratios are to `pil` of the same round."""
    rates: dict[str, list[float]] = {name: [] for name in READERS}
    for index in range(args.rounds):
        for name in reversed(READERS) if index % 2 else READERS:
            rates[name].append(rate(split, name, side, workers, args))
    ratios = {name: [a / b for a, b in zip(taken, rates["pil"], strict=True)] for name, taken in rates.items()}
    ways = {
        name: {
            "images_per_second": statistics.median(taken),
            "rates": taken,
            "ratio": statistics.median(ratios[name]),
            "ratio_min": min(ratios[name]),
            "ratio_max": max(ratios[name]),
        }
        for name, taken in rates.items()
    }
    say(f"{side} px, {workers} workers: " + ", ".join(f"{n} {w['images_per_second']:.0f}" for n, w in ways.items()))
    return {"resolution": side, "workers": workers, "ways": ways}


def step_rate(args: argparse.Namespace, side: int) -> float:
    """Return the images per second of the student's training step alone, method none, on random images."""
    student = Student(args.student, resolution=side)
    student.model.to(memory_format=torch.channels_last)
    step = measure(
        Supervised(student),
        batch=args.student_batch,
        optimizer_factory=lambda module: torch.optim.AdamW(module.parameters()),
        dtype=DTYPES[args.dtype],
    )
    say(f"{side} px, step of {args.student}: {step.images_per_second:.1f}")
    return step.images_per_second


def run(args: argparse.Namespace) -> dict[str, Any]:
    load_before = os.getloadavg()
    check_output(args.output)
    split = choose_images(args)
    with split.open(0) as image:
        size = image.size
    hidden = ("json", "output", "data", "into")
    return {
        "benchmark": "pipeline",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {k: v for k, v in vars(args).items() if k not in hidden} | {"size_of_first": size},
        "kilobytes_an_image": sum(map(split.store.size, range(len(split)))) / len(split) / 1000,
        "differences": {
            str(side): {name: differences(split, name, side) for name in READERS if name != "pil"}
            for side in args.resolutions
        },
        "results": [
            measure_setting(split, side, workers, args) for side in args.resolutions for workers in args.workers
        ],
        "step_images_per_second": {str(side): step_rate(args, side) for side in args.resolutions if args.student},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": describe_machine(torch.device("cpu")),
    }


def table(result: dict[str, Any]) -> str:
    """Format the result: images per second, and in brackets the ratio to PIL (median, minimum to maximum)."""
    lines = ["px   workers " + "".join(f"{name:>26}" for name in READERS)]
    for row in result["results"]:
        cells = (
            f"{w['images_per_second']:.0f} ({w['ratio']:.2f}; {w['ratio_min']:.2f}-{w['ratio_max']:.2f})"
            for w in row["ways"].values()
        )
        lines.append(f"{row['resolution']:<5}{row['workers']:<8}" + "".join(f"{cell:>26}" for cell in cells))
    for side, ways in result["differences"].items():
        for name, d in ways.items():
            lines.append(
                f"{side} px, {name} against pil: mean absolute difference {d['mean_absolute_difference']:.2f}/255, "
                f"of a channel's mean {d['channel_mean_difference']:.2f}/255, std x{d['channel_std_ratio']:.3f}"
            )
    for side, step in result["step_images_per_second"].items():
        for row in result["results"]:
            if str(row["resolution"]) == side:
                share = step / row["ways"]["ours"]["images_per_second"]
                lines.append(
                    f"{side} px: step alone {step:.1f} images/s, {share:.0%} of ours with {row['workers']} workers"
                )
    return "\n".join(lines)


def main() -> int:
    args = parse_arguments()
    try:
        result = run(args)
    except UserError as error:
        say(f"error: {error}")
        return 2
    if args.output:
        write_json(args.output, result)
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
