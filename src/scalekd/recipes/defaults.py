"""Defaults of `scalekd adapt`, by its mode, where they differ from those of a recipe."""

from __future__ import annotations

from typing import Any

ADAPT: dict[str, dict[str, Any]] = {
    "probe": {"batch": 64, "warmup_epochs": 0},
    "finetune": {
        "epochs": 5, "lr": 5e-5, "batch": 64, "warmup_epochs": 1, "crop_scale": (0.4, 1.0), "label_smoothing": 0.1,
    },
}  # fmt: skip
