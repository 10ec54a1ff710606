"""Writes tables and picture of the study from the JSON files of its runs to docs/results.md and README.md."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import study_picture
from study_grid import EPOCHS, LONGER, METHODS, PROJECTORS, RATES, SLOW, STUDENTS, TIMES, grid, longer, slow

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")
NAMES = {"none": "alone", "kd": "KD", "dist": "DIST", "fd": "FD", "scalekd": "ScaleKD"}
HEADS = {"cnn": "CNN (MobileNet-V1)", "vit": "ViT (ViT-Ti/16)", "mlp": "MLP (Mixer-S/16)"}
PLANNED = {row.name.removesuffix("-s0") for row in grid()}
BOTH = ("none", "scalekd")  # the two sides of the longer runs
Record = dict[str, Any]


class Records:
    """Results of runs by name without the seed: one for each available seed."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[str, list[Record]] = {}
        for file in sorted(folder.glob("*.json")):
            if not file.stem.startswith("cost"):
                record = json.loads(file.read_text("utf-8"))
                self.runs.setdefault(re.sub(r"-s\d+$", "", file.stem), []).append(record)
        costs = {file.stem: json.loads(file.read_text("utf-8"))["families"] for file in folder.glob("cost*.json")}
        self.cost: Record | None = costs.get("cost")
        self.cost_amx: Record | None = costs.get("cost-amx")  # of another machine

    def top1(self, name: str, of: Callable[[Record], float | None] = lambda record: record["result"]["top1"]) -> str:
        """Format mean ± standard deviation and seeds of available results; a dash for rows not in the grid."""
        values = [value for record in self.runs.get(name, []) if (value := of(record)) is not None]
        if not values:
            return "not run yet" if name in PLANNED else "-"
        if len(values) == 1:
            return f"{values[0]:.1f}"
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)} seeds)"

    def of(self, name: str, multiples: Sequence[int]) -> list[list[Record]]:
        """Return the available results of a run at the budget and at its multiples."""
        names = [name + longer(times) for times in multiples]
        return [self.runs[name] for name in names if name in self.runs]

    def one(self, name: str, seed: int = 0) -> Record | None:
        return next((record for record in self.runs.get(name, []) if record["name"].endswith(f"-s{seed}")), None)

    def samples(self, name: str) -> str:
        record = self.one(name)
        return f"{record['result']['samples']:,}" if record else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def families(records: Records) -> str:
    """Question a."""
    rows = [[NAMES[m], *(records.top1(f"{family}-{m}") for family in STUDENTS)] for m in METHODS]
    return table(["top-1, %", *HEADS.values()], rows)


def rates(records: Records) -> str:
    """The tuning of the learning rate, on half of the images."""
    tried = sorted({rate for rates in RATES.values() for rate in rates})
    own, low = f", projectors at {PROJECTORS:g}", f", projectors at {SLOW:g}"
    joint, weak = ", projectors at the same rate", ", a quarter of the weights of features"
    kinds = (
        *(("cnn", "none", "", ""), ("cnn", "scalekd", "-joint", joint), ("cnn", "scalekd", "", own)),
        ("cnn", "scalekd", "-weak", own + weak),
        *(("cnn", "fd", "-joint", joint), ("vit", "none", "", "")),
        *(("vit", "scalekd", "", joint), ("vit", "scalekd", slow(), low)),
        *(("vit", "scalekd", "-weak", joint + weak), ("mlp", "none", "", ""), ("mlp", "scalekd", "", joint)),
    )
    rows = [
        [HEADS[family], NAMES[method] + how, *(records.top1(f"{family}-{method}-tune-lr{r:g}{end}") for r in tried)]
        for family, method, end, how in kinds
    ]
    return table(["student", "method", *(f"{rate:g}" for rate in tried)], rows)


def ablation(records: Records) -> str:
    """Question b."""
    parts = {
        "alone": "cnn-none",
        "CAP (last stage, spatial view)": "cnn-scalekd-cap",
        "+ DFM (both views)": "cnn-scalekd-cap-dfm",
        "+ TPP": "cnn-scalekd-cap-dfm-tpp",
        "+ KD = ScaleKD": "cnn-scalekd",
        "ScaleKD, spatial view only": "cnn-scalekd-spatial",
        "ScaleKD, frequency view only": "cnn-scalekd-frequency",
    }
    return table(["", "top-1, %"], [[text, records.top1(name)] for text, name in parts.items()])


def teachers(records: Records) -> str:
    """Question c."""
    strong, tiny = records.one("cnn-scalekd-cap"), records.one("vit-none", seed=1)
    small = next(iter(records.runs.get("teacher-vit-small", [])), None)
    rows: list[tuple[str, Any, str]] = [
        ("ViT-S/14, pre-trained (DINOv2-S), fine-tuned", strong and strong["result"]["teacher_top1"], ""),
        ("ViT-S/14 from random weights", small and small["result"]["top1"], "-teacher-small-scratch"),
        ("ViT-Ti/16 from random weights", tiny and tiny["result"]["top1"], "-teacher-tiny-scratch"),
    ]
    cells = [
        [text, f"{top1:.1f}" if top1 else "-", *(records.top1(f"cnn-scalekd{label}{end}") for end in ("", slow()))]
        for text, top1, label in rows
    ]
    return table(["teacher", "its top-1, %", "MobileNet-V1 with ScaleKD", f"projectors at {SLOW:g}"], cells)


def budgets(records: Records) -> str:
    """Question d, samples viewed."""
    rows: list[list[str]] = []
    students = sorted({family for runs in LONGER.values() for family, _ in runs})
    for times in TIMES:
        label = longer(times)
        cells = [records.top1(f"{family}-{method}{label}") for family in students for method in BOTH]
        rows.append([f"{EPOCHS * times}", records.samples(f"cnn-none{label}"), *cells, saved(records, label)])
    head = [f"{HEADS[family].split()[0]} {NAMES[method]}" for family in students for method in BOTH]
    return table(
        ["epochs", "images viewed", *head, "images that the CNN alone needs to be as accurate as its ScaleKD"], rows
    )


def saved(records: Records, label: str) -> str:
    """Return how many times more images the CNN alone must view to match ScaleKD, by mean accuracies.

    Between its runs, accuracy is interpolated linearly in the logarithm of the images viewed.
    """
    curve = sorted((found[0]["result"]["samples"], mean(found)) for found in records.of("cnn-none", TIMES))
    there = records.runs.get(f"cnn-scalekd{label}", [])
    if not there or not curve:
        return "-"
    viewed, wanted = there[0]["result"]["samples"], mean(there)
    for (before, low), (after, high) in itertools.pairwise(curve):
        if low <= wanted <= high:
            needed = before * (after / before) ** ((wanted - low) / (high - low))
            return f"{needed / viewed:.1f} x"
    return "more than was tried" if wanted > max(top1 for _, top1 in curve) else "fewer than was tried"


def mean(records: Sequence[Record]) -> float:
    return float(statistics.mean(record["result"]["top1"] for record in records))


def shares(records: Records) -> str:
    """Question d, share of the training images."""
    rows = []
    for share, label in ((100, "-share100"), (30, ""), (10, "-share10")):
        cells = [records.top1(f"cnn-{method}{label}") for method in BOTH]
        rows.append([f"{share}%", records.samples(f"cnn-none{label}"), *cells])
    return table(["training images", "images viewed", "alone", "ScaleKD"], rows)


def label_free(records: Records) -> str:
    """Question e."""
    rows = [
        [text, records.top1(name) if head else "-", records.top1(name, of=probed)]
        for text, name, head in (
            ("alone, with labels", "cnn-none", True),
            ("ScaleKD, with labels", "cnn-scalekd", True),
            ("ScaleKD without labels and logits", "cnn-scalekd-label-free", False),
        )
    ]
    return table(["", "its own head, %", "linear probe, %"], rows)


def probed(record: Record) -> float | None:
    return None if record["probe"] is None else float(record["probe"])


def costs(records: Records) -> str:
    """Cost per training image."""
    rows = []
    for machine, cost in (("", records.cost or {}), (", with AMX", records.cost_amx or {})):
        for name in cost["cnn"]["time_ratio"] if cost else ():
            method, _, cached = name.partition(", ")
            cells = []
            for family in STUDENTS:
                if family not in cost:
                    cells += ["-", "-"]
                    continue
                found = cost[family]["time_ratio"][name]
                cells += [f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"]
                cells += [f"{flops(cost[family], method, cached=bool(cached)):.1f}"]
            if method != "none":
                rows.append([NAMES[method] + (", from the cache" if cached else "") + machine, *cells])
    head = [part for family in STUDENTS for part in (f"{HEADS[family].split()[0]}: time", "FLOPs")]
    return table(["of training alone", *head], rows)


def flops(cost: Record, method: str, *, cached: bool) -> float:
    """Return the FLOPs per training image relative to training alone; the teacher's count without a cache only."""
    counted = cost["flops"]
    return float((counted[method]["total"] - cached * counted[method]["teacher"]) / counted["none"]["total"])


def equal_cost(records: Records) -> str:
    """Question f: cost and accuracy of each run of the two methods."""
    rows = []
    for family in STUDENTS:
        for times in TIMES:
            for method in BOTH:
                name = f"{family}-{method}{longer(times)}"
                if name in records.runs:
                    cells = prices(records, family, method, times)
                    rows.append([HEADS[family], NAMES[method], f"{EPOCHS * times}", *cells, records.top1(name)])
    head = ["student", "method", "epochs", "time", "time, cached", "FLOPs", "FLOPs, cached", "top-1, %"]
    return table(head, rows)


def prices(records: Records, family: str, method: str, times: int) -> list[str]:
    """Return time and FLOPs of a run, live and cached, in units of the budget's training alone; dashes if unknown."""
    if family not in (records.cost or {}):
        return ["-"] * 4
    assert records.cost is not None
    cost, found = records.cost[family], []
    for cached in (False, True):
        name = f"{method}, cached" if cached and method != "none" else method
        found.append((cost["time_ratio"][name]["median"], flops(cost, method, cached=cached)))
    return [f"{times * value:.1f}" for kind in zip(*found, strict=True) for value in kind]


TABLES: dict[str, Callable[[Records], str]] = {
    "families": families,
    "rates": rates,
    "ablation": ablation,
    "teachers": teachers,
    "budgets": budgets,
    "shares": shares,
    "label-free": label_free,
    "costs": costs,
    "equal-cost": equal_cost,
}


def filled(page: str, records: Records) -> str:
    """Return the page with its tables replaced: each is between `<!-- table: NAME -->` and `<!-- end -->`."""

    def made(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]](records)}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->.*?<!-- end -->", made, page, flags=re.DOTALL)


def collect(results: Path) -> None:
    """Write tables and picture from the JSON files in a folder."""
    records = Records(results)
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8"), records), encoding="utf-8")
    if "cnn-none" in records.runs:
        study_picture.draw(records.runs, records.cost, results / "samples.svg")
