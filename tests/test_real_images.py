"""The path of the Imagenette run, on a few of its photographs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from conftest import Cli, shared

IMAGES = {"train": 4, "val": 3}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """4 training and 3 validation photographs of each of the 10 classes."""
    taken: dict[str, int] = {}
    with tarfile.open(shared("data", "imagenette-136.tar")) as archive:
        for member in archive:
            folder = str(Path(member.name).parent)
            if member.isfile() and taken.get(folder, 0) < IMAGES[Path(folder).parent.name]:
                taken[folder] = taken.get(folder, 0) + 1
                archive.extract(member, tmp_path, filter="data")
    return tmp_path / "imagenette-136"


def test_the_imagenette_recipe_on_a_few_photographs(cli: Cli, photographs: Path, tmp_path: Path) -> None:
    weights = shared("weights", "vit_small_patch14_imagenette112.safetensors")
    output = tmp_path / "run"
    outcome = cli(
        *("distill", "--recipe", "imagenette", "--teacher-weights", weights, "--data", photographs),
        *("--output", output, "--epochs", "1", "--warmup-epochs", "0", "--batch", "10", "--log-every", "1"),
    )
    assert outcome.code == 0, outcome.err
    result = json.loads((output / "result.json").read_text())
    assert result["teacher_top1"] > 90
    assert result["samples"] == 40
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "train/loss" in line]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    assert steps[-1]["cosine/student_spatial"] > steps[0]["cosine/student_spatial"]
