"""The licence of a teacher's weights is stated, and follows the weights through files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from conftest import CLASSES, TINY_RUN, TINY_VIT, Cli

from scalekd.models import Classifier, Teacher
from scalekd.models.image_model import _license
from scalekd.models.resolve import ModelSpec
from scalekd.models.weights import read_weights
from scalekd.tasks.distill.describing import license_note


@pytest.mark.parametrize(
    ("name", "license_"),
    [
        ("vit_base_patch16_224.mae", "cc-by-nc-4.0"),
        ("vit_small_patch14_dinov2.lvd142m", "apache-2.0"),
        ("vit_base_patch16_dinov3.lvd1689m", "dinov3-license"),
    ],
)
def test_it_is_what_timm_states_of_the_hubs_weights(name: str, license_: str) -> None:
    model = timm.create_model(name, pretrained=False, depth=1)
    assert _license(model, ModelSpec(name, name, pretrained=True)) == license_
    assert _license(model, ModelSpec(name, name)) is None, "random weights have none"
    model.pretrained_cfg["license"] = "unknown"
    assert _license(model, ModelSpec(name, name, pretrained=True)) is None


def licensed(folder: Path, license_: str | None) -> Path:
    """A tiny teacher's file, whose weights have a licence."""
    model = Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=3, resolution=32, **TINY_VIT)
    model.license = license_
    model.save(folder / "teacher.safetensors", CLASSES)
    return folder / "teacher.safetensors"


@pytest.mark.parametrize(
    ("license_", "line"),
    [
        ("apache-2.0", "licence of its weights: apache-2.0"),
        ("cc-by-nc-4.0", "licence of its weights: cc-by-nc-4.0 (not for commercial use)"),
        ("fair-noncommercial-research-license", "fair-noncommercial-research-license (not for commercial use)"),
        (None, "licence of its weights: not known"),
    ],
)
def test_a_run_says_it_plainly(tmp_path: Path, license_: str | None, line: str) -> None:
    (note,) = license_note(Teacher(licensed(tmp_path, license_)))
    assert note.startswith(line) or note.endswith(line)
    assert license_note(Teacher("vit_tiny_patch16_224", pretrained=False, resolution=32, **TINY_VIT)) == []


def test_it_follows_the_weights(cli: Cli, data: Path, tmp_path: Path) -> None:
    file, adapted, run = licensed(tmp_path, "cc-by-nc-4.0"), tmp_path / "adapted", tmp_path / "run"
    common = ("--data", data, "--resolution", "32", "--workers", "0", "--output", adapted)
    assert cli("adapt", file, *common).code == 0
    card = read_weights(adapted / "teacher.safetensors")[1]
    assert card is not None
    assert card.license == "cc-by-nc-4.0"
    outcome = cli("distill", "--teacher", adapted, "--no-check-teacher", "--data", data, *TINY_RUN, "--output", run)
    assert outcome.code == 0, outcome.err
    assert "teacher   licence of its weights: cc-by-nc-4.0 (not for commercial use)" in outcome.err
    assert json.loads((run / "result.json").read_text())["teacher_license"] == "cc-by-nc-4.0"
    student = read_weights(run / "student.safetensors")[1]
    assert student is not None
    assert student.license is None, "it was trained from random weights"
    assert cli("report", run).code == 0
    assert "cc-by-nc-4.0" in (run / "report.html").read_text()
    assert cli("export", run, "--format", "timm").code == 0
    assert "cc-by-nc-4.0" in (run / "export" / "timm" / "README.md").read_text()
