"""Training, measuring and exporting students of images with several labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY_RUN, Cli
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import scalekd
from scalekd.data import Batch, CorruptImages
from scalekd.evaluation import accuracy_metrics, fit_linear_head, measure_accuracy, percentages, update_metrics
from scalekd.evaluation.per_class import ClassCounts
from scalekd.hardware import Compute
from scalekd.methods.base import binary_logit_distance
from scalekd.methods.label_loss import multi_label_cross_entropy
from scalekd.models.weights import read_weights

CPU = torch.device("cpu")
COLORS = ("red", "green", "blue")


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """24 training and 12 validation images whose channels are bright or dark, listed with the bright ones."""
    random = np.random.default_rng(0)
    for split, number in (("train", 24), ("val", 12)):
        (tmp_path / "several" / split).mkdir(parents=True)
        lines = ["path,label"]
        for index in range(number):
            bright = random.random(3) < 0.5
            pixels = random.integers(0, 100, (36, 40, 3), dtype=np.uint8) + (120 * bright).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "several" / split / f"{index}.png")
            labels = "|".join(name for name, has in zip(COLORS, bright, strict=True) if has)
            lines.append(f"{split}/{index}.png,{labels}")
        (tmp_path / "several" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "several"


def test_the_figures_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 4), (torch.rand(40, 4) < 0.3).float()
    logits[:20] = logits[:20].clamp(0.01, 0.99)  # a batch whose logits could be taken for probabilities
    metrics = accuracy_metrics(4, multi_label=True)
    for part in (slice(0, 20), slice(20, 40)):
        update_metrics(metrics, logits[part], labels[part])
    figures = percentages(metrics)
    assert figures["map"] == pytest.approx(100 * average_precision_score(labels.numpy(), logits.numpy()), abs=1e-3)
    assert figures["f1"] == pytest.approx(100 * f1_score(labels.numpy(), logits.numpy() > 0, average="macro"))


def test_unknown_labels_and_absent_classes_do_not_count() -> None:
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, -1, -1]])
    batches = [Batch(torch.tensor([[2.0, -1, 3], [-2, 1, 3], [9, 9, 9]]), labels, {})]
    how: dict[str, Any] = {"num_classes": 3, "compute": Compute(CPU, torch.float32), "corrupt": CorruptImages(0)}
    found = measure_accuracy(lambda images: images, batches, multi_label=True, **how)
    assert (found.metric, found.figures) == ("map", {"map": 100, "f1": 100})
    counts = ClassCounts(3, CPU)
    counts.update(batches[0].images, labels)
    assert [(each.images, each.precision, each.recall) for each in counts.figures("abc")] == [
        (1, 100, 100), (1, 100, 100), (0, 0, None),
    ]  # fmt: skip


def test_the_losses() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    labels = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    per_class = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0]))
    assert multi_label_cross_entropy(logits, labels) == pytest.approx(per_class.sum().item() / 2)  # 2 images
    smoothed = multi_label_cross_entropy(logits, labels, label_smoothing=0.2)
    assert smoothed == pytest.approx((per_class + 0.1 * torch.tensor([2.0, 1.0])).sum().item() / 2)
    teacher = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(binary_logit_distance(teacher, teacher.detach(), 2.0), teacher)
    assert slope.abs().max() < 1e-6  # least where both agree


def test_a_probe_fits_each_class() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 6)).astype(np.float32)
    labels = (features[:, :3] > 0).astype(np.int64)
    head = fit_linear_head(features, labels)
    answers = features @ head.weight.numpy().T + head.bias.numpy() > 0
    assert (answers == labels).mean() > 0.95
    assert head.heldout > 95


def test_a_run_learns_several_labels_and_everything_after_it_knows(
    several: Path, tmp_path: Path, cli: Cli, teacher_file: Path
) -> None:
    probe = cli("adapt", teacher_file, "--data", several, "--multi-label", "--output", tmp_path / "t", "--json")
    assert probe.code == 0, probe.err
    assert 0 < json.loads(probe.out)["map"] <= 100
    run = tmp_path / "run"
    flags = ("--data", several, "--multi-label", *TINY_RUN, "--epochs", "30", "--lr", "1e-2", "--logit-weight", "0.5")
    done = cli("distill", "--teacher", tmp_path / "t" / "teacher.safetensors", *flags, "--output", run)
    assert done.code == 0, done.err
    assert "3 classes, 1." in done.err  # labels per image
    result = json.loads((run / "result.json").read_text())
    assert result["top1"] is None
    assert result["map"] > 80
    assert 0 < result["teacher_map"] <= 100
    card = read_weights(run / "student.safetensors")[1]
    assert card is not None
    assert (card.multi_label, card.top1, card.map) == (True, None, round(result["map"], 2))
    measured = json.loads(cli("evaluate", run, "--json", "--per-class").out)
    assert measured["map"] == pytest.approx(result["map"], abs=1e-3)
    assert [each["name"] for each in measured["per_class"]] == ["blue", "green", "red"]
    for format_, file in (("onnx", "student.onnx"), ("timm", "timm")):
        assert cli("export", run, "--format", format_).code == 0
        answers = cli("predict", run / "export" / file, several / "val" / "0.png", "--top", "3", "--json")
        found = json.loads(answers.out)["predictions"]
        ours = json.loads(cli("predict", run, several / "val" / "0.png", "--top", "3", "--json").out)["predictions"]
        assert [each["class"] for each in found] == [each["class"] for each in ours]
        probabilities = [each["probability"] for each in found]
        assert probabilities == pytest.approx([each["probability"] for each in ours], abs=1e-4)
    assert cli("predict", run, several / "val" / "0.png", "--threshold", "1").out.strip().endswith("-")
    page = tmp_path / "report.html"
    assert cli("report", run, "--output", page, "--images", "4").code == 0
    assert "mean average precision" in page.read_text()


def test_data_without_several_labels_is_refused(several: Path, data: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    flags = ("--method", "none", *TINY_RUN, "--epochs", "1", "--output", run)
    assert cli("distill", "--data", several, "--multi-label", *flags).code == 0
    cli("evaluate", run, "--data", data).refused("several labels per image are read from lists only")
    cli("evaluate", run, "--data", data, "--no-multi-label").refused("gives an image several labels")
    cli("evaluate", run, "--knn").refused("knn", "one label per image")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--method", "dist"), ("multi_label", "dist", "sum to 1")),
        (("--method", "ofa"), ("multi_label", "ofa")),
        (("--task-loss", "cross_entropy"), ("task_loss", "bce")),
        (("--mixup", "0.2"), ("mixup", "one label")),
        (("--class-weights", "balanced"), ("class_weights",)),
        (("--pilot", "1"), ("pilot", "several labels")),
    ],
)
def test_what_several_labels_cannot_have(
    several: Path, tmp_path: Path, cli: Cli, teacher_file: Path, flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    output = () if "--pilot" in flags else ("--output", tmp_path / "run")
    own = ("--data", several, "--multi-label", "--teacher", teacher_file, *TINY_RUN, "--epochs", "1")
    cli("distill", *own, *flags, *output).refused(*parts)
    assert not (tmp_path / "run").exists()


def test_a_separator_without_several_labels_is_refused(several: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ("--method", "none", *TINY_RUN, "--output", tmp_path / "run")
    cli("distill", "--data", several, "--label-separator", "pipe", *flags).refused("label_separator", "multi_label")


def test_processes_without_an_image_share_the_metrics(several: Path, tmp_path: Path) -> None:
    """12 validation images in one micro-batch: the second process has none."""
    flags: list[str | Path] = ["--data", several, "--multi-label", "--method", "none", *TINY_RUN, "--epochs", "1"]
    flags += ["--batch", "24", "--micro-batch", "12", "--accelerator", "cpu"]
    results = []
    for devices in ("1", "2"):
        output = tmp_path / devices
        command = [sys.executable, "-m", "scalekd", "distill", *flags, "--devices", devices, "--output", output]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((output / "result.json").read_text()))
    assert results[0]["map"] == pytest.approx(results[1]["map"], abs=2)
    assert 0 < results[1]["f1"] <= 100


def test_models_of_the_other_kind_are_refused(
    several: Path, data: Path, tmp_path: Path, cli: Cli, teacher_file: Path
) -> None:
    run = ("--teacher", teacher_file, *TINY_RUN, "--epochs", "1", "--output", tmp_path / "run")
    assert set(COLORS) == set(CLASSES)
    cli("distill", "--data", several, "--multi-label", *run).refused(
        "multi_label", "one label", "leave out --multi-label"
    )
    cli("evaluate", teacher_file, "--data", several, "--multi-label").refused("gives an image one label")


def test_a_data_set_object_has_one_label(tmp_path: Path) -> None:
    sets = ([(Image.new("RGB", (8, 8)), 0)], [(Image.new("RGB", (8, 8)), 0)])
    with pytest.raises(scalekd.UserError, match="multi_label: several labels per image are read from lists"):
        scalekd.distill(data=sets, output=tmp_path / "run", student="resnet10t", method="none", multi_label=True)
