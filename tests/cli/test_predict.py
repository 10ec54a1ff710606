"""`scalekd predict` returns the same classes from a run's weights, a timm folder and an ONNX file."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY_CNN, Cli
from PIL import Image

from scalekd.models import Classifier


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN)
    model.save(tmp_path / "student.safetensors", CLASSES)
    return tmp_path / "student.safetensors"


def test_every_form_of_a_model_says_the_same(cli: Cli, data: Path, weights: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "student.onnx"
    assert cli("export", weights, "--format", "timm", "--output", folder).code == 0
    assert cli("export", weights, "--format", "onnx", "--output", file).code == 0
    answers = []
    for model in (weights, folder, file):
        outcome = cli("predict", model, data / "val", "--json", "--precision", "float32", "--batch", "4")
        assert outcome.code == 0, outcome.err
        answers.append([json.loads(line) for line in outcome.out.splitlines()])
    for answer in answers:
        assert [a["image"] for a in answer] == sorted(str(p) for p in (data / "val").rglob("*.png"))
        for ours, other in zip(answers[0], answer, strict=True):
            assert [p["class"] for p in ours["predictions"]] == [p["class"] for p in other["predictions"]]
            assert [p["probability"] for p in ours["predictions"]] == pytest.approx(
                [p["probability"] for p in other["predictions"]], abs=1e-4
            )
    first = answers[0][0]["predictions"]
    assert {p["class"] for p in first} == set(CLASSES)
    assert sum(p["probability"] for p in first) == pytest.approx(1, abs=1e-4)
    assert all(CLASSES[p["index"]] == p["class"] for p in first)


def test_a_table_and_csv_hold_the_best_classes(cli: Cli, data: Path, weights: Path) -> None:
    image = data / "val" / "red" / "0.png"
    line = cli("predict", weights, image, "--top", "2", "--precision", "float32").out
    rows = list(csv.DictReader(io.StringIO(cli("predict", weights, image, "--csv", "--precision", "float32").out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    best = [f"{row['class']} {100 * float(row['probability']):.1f}%" for row in rows]
    assert line.strip() == f"{image}  {best[0]}  {best[1]}"


def test_unreadable_images_are_told_at_the_end_and_the_rest_is_done(cli: Cli, data: Path, weights: Path) -> None:
    spoilt, missing = data / "val" / "red" / "spoilt.png", data / "missing.png"
    spoilt.write_bytes((data / "val" / "red" / "0.png").read_bytes()[:200])
    outcome = cli("predict", weights, missing, data / "val", "--json")
    assert outcome.code == 1
    assert len(outcome.out.splitlines()) == 6
    assert outcome.err.splitlines()[-3:] == [
        f"cannot be read: {missing} (no such file)",
        f"cannot be read: {spoilt} (the file is truncated)",
        "2 of 8 images could not be read",
    ]


def test_names_cannot_play_tricks_on_the_terminal(cli: Cli, weights: Path, tmp_path: Path) -> None:
    model = Classifier(weights)
    model.save(weights, ("[red]a[/red]", "b\x1b[2J", "c\nd"))
    name = os.fsdecode(b"\x1b[31m\xff\n[bold].png")
    Image.new("RGB", (40, 40)).save(tmp_path / name)
    broken = tmp_path / "\x1bbroken.png"
    broken.write_bytes(b"")
    for form in ((), ("--csv",), ("--json",)):
        outcome = cli("predict", weights, tmp_path / name, broken, *form)
        assert outcome.code == 1
        assert "\x1b" not in outcome.out + outcome.err
        assert len(outcome.out.splitlines()) == {(): 1, ("--csv",): 4, ("--json",): 1}[form]
        assert "[red]a[/red]" in outcome.out
        assert "[bold]" in outcome.out
    assert os.fsencode(json.loads(outcome.out)["image"]) == os.fsencode(tmp_path / name)


def test_wrong_input_is_refused_in_a_line(cli: Cli, data: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cli("predict", weights, tmp_path / "empty").refused("no images", "empty")
    cli("predict", weights, data / "val", "--json", "--csv").refused("--json", "--csv")
    cli("predict", tmp_path / "none.onnx", data / "val").refused("no such file", "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    cli("predict", tmp_path / "bad.onnx", data / "val").refused("bad.onnx", "cannot be read")
    headless = tmp_path / "headless.safetensors"
    Classifier("resnet18", pretrained=False, num_classes=0, resolution=32, **TINY_CNN).save(headless)
    cli("predict", headless, data / "val").refused("no head", "scalekd adapt")
