"""Defines the rows of the study of few labels: students, labelled images a class, methods, all with equal time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study_grid import FITTED, PROJECTORS, STRONG, USUAL, Row
from study_grid import STUDENTS as SCRATCH

RESULTS = Path(__file__).parent / "results" / "few_labels"  # a JSON file a run, and one for each fitted teacher
LABELS = (10, 100, 284)  # labelled images a class; the last number is all of them
SHARE = 30  # percent of the training images; those without a label are the student's, too
IMAGES = 2839
VIEWS = 4  # augmentations that are cached

# Method: recipe keys, and the time of a step if that on labels only is 1 (docs/performance.md; dist is taken to cost as
# much as kd). With all labels the teacher was fine-tuned on all of Imagenette, three times as many images.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "none": ({"method": "none"}, 1.0),
    "pseudo": ({"method": "none"}, 1.0),  # the teacher's answers are the labels
    "kd": ({"method": "kd"}, 1.02),
    "dist": ({"method": "dist"}, 1.02),
    "lean": ({"method": "scalekd", "lean": True, "projector_lr_scale": PROJECTORS / USUAL["cnn"]}, 1.22),
}
SHORT, LONG = 7, 28  # epochs of labels only on all images; other rows have as many as fit into the same time
# How a teacher is fitted to so many labelled images a class (`scalekd adapt`). The strong one is used for all of them.
MODES = {10: "probe", 100: "finetune"}


@dataclass(frozen=True)
class LabelRow(Row):
    """One run of the study of few labels.

    Attributes:
        labels: Labelled images a class; all others have no label.
        way: The name of its method in METHODS.
    """

    labels: int = LABELS[-1]
    way: str = "none"


def label_row(
    way: str, labels: int, seed: int = 0, *, family: str = "cnn", budget: int = SHORT, strong: bool = False
) -> LabelRow:
    """Return a run that takes about as long as `budget` epochs of all images with labels only."""
    keys, step = METHODS[way]
    images = labels * 10 if way == "none" else IMAGES
    epochs = round(budget * IMAGES / images / step)
    settings = {"lr": USUAL[family], "epochs": epochs, "seed": seed} | SCRATCH[family] | keys
    if way not in ("none", "pseudo"):
        settings["augmentation_epochs"] = VIEWS
    teacher = None if way == "none" else STRONG if strong or labels == LABELS[-1] else FITTED
    parts = [family, str(labels), way, "strong" if strong else "", "long" if budget == LONG else "", f"s{seed}"]
    return LabelRow("-".join(filter(None, parts)), settings, SHARE, teacher, family=family, labels=labels, way=way)


def grid() -> Iterator[LabelRow]:
    """Return all rows, the most informative first."""
    for way in ("none", "kd", "lean", "pseudo", "dist"):
        for labels in LABELS:
            if (way, labels) != ("pseudo", LABELS[-1]):  # all labels are known
                yield label_row(way, labels)
    for seed in (1, 2):
        for way in ("none", "kd", "lean"):
            yield label_row(way, 100, seed)
    for way in ("kd", "lean"):
        for labels in LABELS[:-1]:
            yield label_row(way, labels, strong=True)
    for labels in (100, LABELS[-1]):
        for way in ("none", "kd", "lean"):
            yield label_row(way, labels, budget=LONG)
