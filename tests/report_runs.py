"""Small real runs to report on; one class is called as no page should believe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CNN, write_images
from rich.console import Console

from scalekd.recipes import load
from scalekd.training import distill

HOSTILE = "<script>alert(1)</script>"
KEYS: dict[str, Any] = {
    "student": "resnet18", "student_args": TINY_CNN, "resolution": 32, "crop_fraction": 1, "batch": 6, "epochs": 2,
    "warmup_epochs": 0, "lr": 0.01, "workers": 0, "log_every": 1, "precision": "float32", "check_teacher": False,
    "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 6 validation images, listed with their classes, one of them hostile."""
    folder = tmp_path_factory.mktemp("listed")
    for split, count in (("train", 4), ("val", 2)):
        images = sorted(write_images(folder / "images" / split, count).glob("*/*.png"))
        rows = [f"{path.relative_to(folder)},{path.parent.name.replace('green', HOSTILE)}" for path in images]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, listed: Path, teacher_file: Path) -> Path:
    """A folder with the finished runs `none` and `scalekd`, which learns from features only."""
    folder = tmp_path_factory.mktemp("runs")
    own = {"none": {}, "scalekd": {"teacher": str(teacher_file), "logit_weight": 0}}
    for method, more in own.items():
        recipe = load(None, KEYS | {"data": str(listed), "method": method} | more)
        distill(recipe, folder / method, console=Console(quiet=True))
    return folder
