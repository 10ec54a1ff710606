"""Does distillation help another task? One backbone three ways (random, alone, distilled), equal segmentation runs.

Usage: python experiments/camvid.py --data CAMVID --backbone random=mobilenetv1_100 --backbone alone=RUN \
    --backbone distilled=RUN --seed 0 --seed 1 --runs FOLDER --output FILE [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import script
from script import say

from scalekd.atomic import write_json
from scalekd.environment import describe_environment
from scalekd.errors import UserError
from scalekd.recipes import load_as
from scalekd.recipes.load import dump
from scalekd.runs.folder import RunFolder
from scalekd.tasks.segmentation import Segmentation
from scalekd.tasks.segmentation.run import train
from scalekd.tasks.transfer.running import located

RANDOM = "random"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="data set in ADE20K's layout")
    parser.add_argument(
        "--backbone",
        action="append",
        required=True,
        metavar="NAME=MODEL",
        help=f"a run's folder or weights file, in which {{seed}} is the seed; {RANDOM}=TIMM_NAME starts from random "
        "weights. Give several",
    )
    parser.add_argument("--seed", type=int, action="append", help="give several; default 0 and 1")
    parser.add_argument("--recipe", default="segmentation/camvid", help="default segmentation/camvid")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a recipe key"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; those there are resumed")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="result as JSON, after each run")
    return parser.parse_args()


def pairs(texts: list[str], flag: str) -> dict[str, str]:
    """Parse texts `a=b` into a dictionary.

    Raises:
        UserError: If one has no `=`, or a name comes twice.
    """
    split = [text.partition("=") for text in texts]
    names = [name for name, _, _ in split]
    for text, (name, equals, value) in zip(texts, split, strict=True):
        if not (name and equals and value) or names.count(name) > 1:
            raise UserError(f"{flag}: {text!r}: give NAME=VALUE, each name once")
    return {name: value for name, _, value in split}


def run(recipe: Segmentation, folder: Path) -> dict[str, Any]:
    """Run one setting and return its result; a finished run in the folder with the same settings is reused.

    Raises:
        UserError: If the existing run has other settings.
    """
    there = RunFolder(folder)
    if there.finished:
        there.check_same(located(recipe))
        result: dict[str, Any] = json.loads(there.result.read_text(encoding="utf-8"))
        return result
    return train(recipe, folder, resume=there.exists)


def summary(results: list[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Return the mIoU of each backbone over its seeds: mean, standard deviation (0 for one seed), number of seeds."""
    found: dict[str, list[float]] = {}
    for result in results:
        found.setdefault(result["backbone"], []).append(result["miou"])
    return {
        name: {
            "miou_mean": round(statistics.mean(values), 3),
            "miou_std": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0,
            "seeds": len(values),
        }
        for name, values in found.items()
    }


def settings(args: argparse.Namespace, overrides: Mapping[str, Any]) -> Segmentation:
    return load_as(Segmentation, args.recipe, {"data": args.data, **pairs(args.set, "set"), **overrides}, say)


def main() -> int:
    args = parse_arguments()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    backbones, results = pairs(args.backbone, "backbone"), []
    for seed in args.seed or [0, 1]:  # all backbones of a seed first, so that what is there compares
        for name, model in backbones.items():
            backbone = model.replace("{seed}", str(seed))
            recipe = settings(args, {"backbone": backbone, "backbone_pretrained": name != RANDOM, "seed": seed})
            say(f"{name}, seed {seed}")
            result = run(recipe, args.runs / f"{name}-{seed}")
            figures = {key: result[key] for key in ("miou", "pixel_accuracy", "iou", "steps", "sha256")}
            results.append({"backbone": name, "seed": seed, **figures})
            content = {"recipe": dump(settings(args, {})), "environment": describe_environment()}
            write_json(args.output, content | {"backbones": backbones, "summary": summary(results), "runs": results})
    for name, row in summary(results).items():
        print(f"{name:12} mIoU {row['miou_mean']:.2f}% (std {row['miou_std']:.2f}, {row['seeds']} seeds)")
    return 0


if __name__ == "__main__":
    script.run(main)
