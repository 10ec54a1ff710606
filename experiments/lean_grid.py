"""Defines the rows of the lean study: cheaper forms of ScaleKD, first all with one seed, then the best with three."""

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
    "quarter": {"feature_share": 0.25},
    "quarter-alpha": {"feature_share": 0.25} | {key: value / 4 for key, value in ALPHAS.items()},
}


def lean_row(form: str, seed: int = 0, family: str = "cnn") -> Row:
    """Return a run of one form."""
    keys: dict[str, Any] = {"method": "scalekd"} | FORMS[form]
    rate = keys.pop("projectors", PROJECTORS if family == "cnn" else USUAL[family])
    keys |= {"lr": USUAL[family], "epochs": EPOCHS, "augmentation_epochs": VIEWS, "seed": seed} | STUDENTS[family]
    if "projector_lr_scale" in METHODS[keys["method"]].keys:
        keys["projector_lr_scale"] = rate / keys["lr"]
    teacher = None if keys["method"] == "none" else STRONG
    return Row(f"{family}-{form}-s{seed}", keys, SHARE, teacher, family=family)


# Forms that are run with three seeds, cheapest first.
CANDIDATES = ("none", "quarter-conv1x1", "conv1x1", "exact")


def grid() -> Iterator[Row]:
    """All forms with one seed, then the candidates with two more."""
    for form in FORMS:
        yield lean_row(form)
    for seed in (1, 2):
        for form in CANDIDATES:
            yield lean_row(form, seed)
