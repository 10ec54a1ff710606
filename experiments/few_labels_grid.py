"""Defines the rows of the study of few labels: students, labelled images a class, methods, all with equal time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from study_grid import FITTED, PROJECTORS, STRONG, STUDENTS, USUAL, Row

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
    "lean": ({"method": "scalekd", "lean": True}, 1.22),
    "falling": ({"method": "scalekd", "lean": True, "feature_schedule": "falling"}, 1.22),
}
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {"lr": USUAL[family], **student} for family, student in STUDENTS.items()},
    "lite0": {"lr": 1e-3, "student": "tf_efficientnet_lite0"},
}
SHORT, LONG = 7, 28  # epochs of labels only on all images; other rows have as many as fit into the same time
CHECKED = 4  # validations of a long row, at equal distances
PRETRAINED = "lite0"  # the family of the student that starts from ImageNet's weights
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
    checks = CHECKED if budget == LONG else 1  # validations are at equal distances
    epochs = checks * round(budget * IMAGES / images / step / checks)
    settings = {"epochs": epochs, "seed": seed} | FAMILIES[family] | keys
    if way in ("lean", "falling"):
        settings["projector_lr_scale"] = PROJECTORS / settings["lr"]
    settings["validate_every"] = epochs // checks
    if way not in ("none", "pseudo"):
        settings["augmentation_epochs"] = VIEWS
    teacher = None if way == "none" else STRONG if strong or labels == LABELS[-1] else FITTED
    parts = [family, str(labels), way, "strong" if strong else "", "long" if budget == LONG else "", f"s{seed}"]
    return LabelRow("-".join(filter(None, parts)), settings, SHARE, teacher, family=family, labels=labels, way=way)


def grid() -> Iterator[LabelRow]:
    """Return all rows, the most informative first."""
    few, some, everything = LABELS
    compared = ("none", "kd", "lean")
    for way, labels in product((*compared, "falling", "pseudo", "dist"), LABELS):
        if (way, labels) != ("pseudo", everything):  # all labels are known
            yield label_row(way, labels)
    for seed, way in product((1, 2), compared):
        yield label_row(way, some, seed)
    for way, labels in product(("kd", "lean"), (few, some)):
        yield label_row(way, labels, strong=True)
    for labels, way in product((everything, some), (*compared, "falling")):
        yield label_row(way, labels, budget=LONG)
    for labels, way in product((some, everything), compared):
        yield label_row(way, labels, family=PRETRAINED)
    for family, way in product(("mlp", "vit"), compared):
        yield label_row(way, some, family=family)
