"""Defines the rows of the lean study: all forms with one seed, the best with three, and long runs of equal time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study_grid import PROJECTORS, STRONG, STUDENTS, USUAL, Row

from scalekd.methods.registry import METHODS, MethodKeys

RESULTS = Path(__file__).parent / "results" / "lean"  # a JSON file a run
SHARE, EPOCHS, VIEWS = 10, 10, 4  # percent of the training images; passes over them; augmentations that are cached

ALPHAS = {key: MethodKeys.model_fields[key].default for key in ("alpha_spatial", "alpha_frequency")}
CHEAP: dict[str, Any] = {"stem": "conv1x1"}
LINEAR: dict[str, Any] = {"projector": "linear", "tpp": False}
# Name: keys that differ from exact ScaleKD.
FORMS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "kd": {"method": "kd"},
    "exact": {},
    "conv1x1": CHEAP,
    "half-conv1x1": CHEAP | {"feature_share": 0.5},
    "quarter-conv1x1": CHEAP | {"feature_share": 0.25},
    "quarter-conv1x1-alpha": CHEAP | {"feature_share": 0.25} | {key: value / 4 for key, value in ALPHAS.items()},
    "quarter-conv1x1-fast": CHEAP | {"feature_share": 0.25, "projectors": 2 * PROJECTORS},
    "no-tpp-conv1x1": CHEAP | {"tpp": False},
    "half-conv1x1-alpha": CHEAP | {"feature_share": 0.5} | {key: value / 2 for key, value in ALPHAS.items()},
    "no-tpp-half-conv1x1": CHEAP | {"tpp": False, "feature_share": 0.5},
    "fd": {"method": "fd", "logit_weight": 0.5},
    "spatial-conv1x1": CHEAP | {"views": ["spatial"]},
    "eighth-conv1x1-alpha": CHEAP | {"feature_share": 0.125} | {key: value / 8 for key, value in ALPHAS.items()},
    "linear": {"projector": "linear"},
    "linear-no-tpp": LINEAR,
    "linear-no-tpp-strong": LINEAR | {key: 4 * value for key, value in ALPHAS.items()},
    "linear-no-tpp-fast": LINEAR | {"projectors": 8 * PROJECTORS},
    "quarter": {"feature_share": 0.25},
    "quarter-alpha": {"feature_share": 0.25} | {key: value / 4 for key, value in ALPHAS.items()},
}


def lean_row(form: str, seed: int = 0, family: str = "cnn", epochs: int = EPOCHS) -> Row:
    """Return a run of one form; training alone sees new augmentations in every epoch if the run is a long one."""
    keys: dict[str, Any] = {"method": "scalekd"} | FORMS[form]
    rate = keys.pop("projectors", PROJECTORS if family == "cnn" else USUAL[family])
    keys |= {"lr": USUAL[family], "epochs": epochs, "seed": seed} | STUDENTS[family]
    if "projector_lr_scale" in METHODS[keys["method"]].keys:
        keys["projector_lr_scale"] = rate / keys["lr"]
    if epochs == EPOCHS:
        keys["augmentation_epochs"] = VIEWS
    elif keys["method"] != "none":
        keys["augmentation_epochs"] = LONG_VIEWS
    teacher = None if keys["method"] == "none" else STRONG
    length = "" if epochs == EPOCHS else f"-e{epochs}"
    return Row(f"{family}-{form}{length}-s{seed}", keys, SHARE, teacher, family=family)


# Form and epochs of longer runs. Those of 80, 74 and 40 epochs take about the same time (docs/LOG.md).
LONG = (
    *((form, 20) for form in ("none", "fd", "linear-no-tpp", "linear-no-tpp-strong", "linear-no-tpp-fast", "linear")),
    ("exact", 20),
    ("none", 80),
    ("fd", 74),
    ("linear-no-tpp-strong", 64),
    ("quarter-conv1x1", 40),
)
LONG_VIEWS = 8
# Forms that are run with three seeds, cheapest first.
CANDIDATES = ("none", "quarter-conv1x1", "conv1x1", "exact")


def grid() -> Iterator[Row]:
    """All forms with one seed, then the candidates with two more, then the long runs."""
    for form in FORMS:
        yield lean_row(form)
    for seed in (1, 2):
        for form in CANDIDATES:
            yield lean_row(form, seed)
    for form, epochs in LONG:
        yield lean_row(form, epochs=epochs)
    for seed in (1, 2):
        for form in ("none", "linear-no-tpp-strong"):
            yield lean_row(form, seed, epochs=20)
    for family in ("mlp", "vit"):
        for form in ("none", "linear-no-tpp-strong", "exact"):
            yield lean_row(form, family=family)
