"""Defines the rows of the study: which runs answer which question. See docs/results.md for the questions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalekd.methods.registry import has_key

RESULTS = Path(__file__).parent / "results" / "study"  # a JSON file a run
EPOCHS = 4  # the budget: passes over SHARE percent of the training images
SHARE = 30
STRONG = "strong"  # the teacher whose weights are given
FITTED = "fitted"  # the teacher that was fitted to a row's labelled images (few_labels.py)

STUDENTS: dict[str, dict[str, Any]] = {
    "cnn": {"student": "mobilenetv1_100"},
    "vit": {"student": "vit_tiny_patch16_224", "student_args": {"global_pool": "avg", "class_token": False}},
    "mlp": {"student": "mixer_s16_224"},
}
METHODS = ("none", "kd", "fd", "dist", "scalekd")
# Tried for training alone and for ScaleKD; the CNN's projectors keep theirs, all others go with the student.
RATES = {"cnn": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), "vit": (5e-4, 1e-3, 2e-3), "mlp": (5e-4, 1e-3, 2e-3)}
USUAL = {"cnn": 1.6e-2, "vit": 1e-3, "mlp": 1e-3}  # what came out; the MLP's was the ViT's before it was tuned
# Projectors are attention: what the CNN bears makes them collapse. Beside it they learn at this rate.
PROJECTORS = 1e-3
OWN = (1.6e-2, 3.2e-2)  # the CNN's rates that are tried beside it
SLOW = 2.5e-4  # a slower rate of projectors, tried on the ViT, the CNN and under the teacher from random weights
JOINT = (("scalekd", 2e-3), ("scalekd", 4e-3), ("scalekd", 8e-3), ("fd", 8e-3))  # tried with one rate for both

# The method without its later parts: a projector on the last stage, then the second view, then TPP.
ABLATIONS: dict[str, dict[str, Any]] = {
    "cap": {"tpp": False, "views": ["spatial"], "logit_weight": 0.0, "check_teacher": True},  # measures it for all
    "cap-dfm": {"tpp": False, "logit_weight": 0.0},
    "cap-dfm-tpp": {"logit_weight": 0.0},
    "spatial": {"views": ["spatial"]},
    "frequency": {"views": ["frequency"]},
}
# The strong teacher's architecture, as a student.
VIT_SMALL = {"student": "vit_small_patch14_dinov2", "student_args": {"global_pool": "avg", "fc_norm": False}}
WEAK = {"alpha_spatial": 0.02, "alpha_frequency": 0.015}  # a quarter of the paper's weights of features
LONGER = {
    2: (("cnn", 0), ("cnn", 1), ("vit", 0)),
    4: (("cnn", 0), ("vit", 0)),
}  # multiples of the budget: students and seeds
ALONE = {"cnn": (8,), "mlp": (2,)}  # of training alone only, for comparisons at equal time
TIMES = sorted({1, *LONGER, *itertools.chain(*ALONE.values())})
SHARES = {100: 1, 10: 12}  # percent of the training images: epochs of about the same number of images viewed


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        name: Name of its run folder and result.
        keys: Recipe keys in addition to those of the recipe `imagenette`.
        share: Percentage of the training images.
        teacher: STRONG or FITTED, or the row whose student is the teacher, or None for training alone.
        probe: Whether a linear probe of its frozen features is measured afterwards.
    """

    name: str
    keys: dict[str, Any]
    share: int = SHARE
    teacher: str | None = None
    probe: bool = False
    family: str = field(default="cnn")

    @property
    def kind(self) -> tuple[int, str | None, bool]:
        """Return its settings other than keys: share, teacher, probe."""
        return self.share, self.teacher, self.probe


def row(family: str, method: str, seed: int = 0, *, label: str = "", share: int = SHARE, **more: Any) -> Row:
    """Return a run of the student of a family."""
    teacher, probe = more.pop("teacher", None if method == "none" else STRONG), more.pop("probe", False)
    projectors = more.pop("projectors", PROJECTORS if family == "cnn" else None)  # their rate; None: the student's
    keys: dict[str, Any] = (
        {"lr": USUAL[family], "epochs": EPOCHS, "method": method, "seed": seed} | STUDENTS[family] | more
    )
    if projectors is not None and has_key(method, "projector_lr_scale"):
        keys["projector_lr_scale"] = projectors / keys["lr"]
    name = "-".join(part for part in (family, method, label, f"s{seed}") if part)
    return Row(name, keys, share, teacher, probe, family)


def longer(times: int) -> str:
    """Return the suffix, before the seed, of names of rows with a multiple of the budget."""
    return "" if times == 1 else f"-x{times}"


def headline(seed: int, *methods: str, families: Iterable[str] = STUDENTS) -> Iterator[Row]:
    """Question a: methods on families of students."""
    for method in methods or METHODS:
        for family in families:
            compared = family == "cnn" and method in ("none", "scalekd")  # with the label-free run
            yield row(family, method, seed, probe=compared)


def tuning() -> Iterator[Row]:
    """Learning rates of both methods, on half of the images: half of the budget, with the same schedule."""
    for family, rates in RATES.items():
        for rate in rates:
            yield tuned(family, "none", rate)
            if family != "cnn" or rate in OWN:
                yield tuned(family, "scalekd", rate)
    for method, rate in JOINT:
        yield tuned("cnn", method, rate, "-joint", projectors=None)
    yield tuned("vit", "scalekd", USUAL["vit"], slow(), projectors=SLOW)
    for family in ("cnn", "vit"):
        yield tuned(family, "scalekd", USUAL[family], "-weak", **WEAK)


def slow() -> str:
    """Return the suffix, before the seed, of names of rows with slow projectors."""
    return f"-projectors{SLOW:g}"


def tuned(family: str, method: str, rate: float, end: str = "", **more: Any) -> Row:
    """Return a run with half of the budget."""
    return row(family, method, label=f"tune-lr{rate:g}{end}", lr=rate, share=SHARE // 2, **more)


def ablation() -> Iterator[Row]:
    """Question b."""
    for name, keys in ABLATIONS.items():
        yield row("cnn", "scalekd", label=name, **keys)


def teachers() -> Iterator[Row]:
    """Question c: the strong teacher's architecture from random weights, and a smaller one, as teachers."""
    scratch = {"lr": 5e-4, "method": "none", "seed": 0, "epochs": EPOCHS // 2}
    yield Row("teacher-vit-small", scratch | VIT_SMALL, 100, family="vit")
    yield row("cnn", "scalekd", label="teacher-small-scratch", teacher="teacher-vit-small")
    yield row("cnn", "scalekd", label="teacher-tiny-scratch", teacher="vit-none-s1")
    yield row("cnn", "scalekd", label=slow()[1:], projectors=SLOW)
    yield row("cnn", "scalekd", label=f"teacher-small-scratch{slow()}", teacher="teacher-vit-small", projectors=SLOW)


def samples() -> Iterator[Row]:
    """Questions d and f: longer runs."""
    for times, students in LONGER.items():
        for family, seed in students:
            for method in ("none", "scalekd"):
                yield row(family, method, seed, label=longer(times)[1:], epochs=times * EPOCHS)
    for family, multiples in ALONE.items():
        for times in multiples:
            yield row(family, "none", label=longer(times)[1:], epochs=times * EPOCHS)


def shares() -> Iterator[Row]:
    """Question d: more and fewer training images, with about the same number of images viewed."""
    for share, epochs in SHARES.items():
        for method in ("none", "scalekd"):
            yield row("cnn", method, label=f"share{share}", share=share, epochs=epochs)


def label_free() -> Iterator[Row]:
    """Question e: no labels and no logits, then a linear probe; compared with the features of supervised training."""
    yield row("cnn", "scalekd", label="label-free", labels="none", logit_weight=0.0, probe=True)


def grid() -> list[Row]:
    """Return all rows, the most informative first."""
    parts = [
        *(*headline(0, families=["cnn"]), *headline(1, "none", "scalekd", families=["cnn"])),
        *headline(0, families=["vit", "mlp"]),
        *(*ablation(), *label_free(), *headline(1, "none", "scalekd", families=["vit"])),
        *(*samples(), *teachers(), *shares()),
        *(*headline(1, "kd", "fd", "dist", families=["cnn", "vit"]), *tuning(), *headline(1, families=["mlp"])),
    ]
    rows = {row.name: row for row in parts}
    assert len(rows) == len(parts), "two rows have one name"
    return list(rows.values())
