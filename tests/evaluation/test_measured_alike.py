"""Training, `evaluate`, `predict`, `report` and `adapt` give the same answers for the same weights and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_CNN, TINY_VIT, Cli
from PIL import Image
from rich.console import Console

from scalekd.models import Classifier, Student
from scalekd.models.memory_format import prepare_classifier
from scalekd.recipes import load
from scalekd.report.measure import measure_figures
from scalekd.report.predictions import accuracy
from scalekd.report.record import read_runs
from scalekd.runs.measured_settings import measured_as
from scalekd.tasks.distill import distill

CLASSES = 12
CPU = torch.device("cpu")
STUDENTS: dict[str, dict[str, Any]] = {
    "cnn": {"student": "resnet18", "student_args": TINY_CNN},
    "depthwise": {"student": "mobilenetv3_small_050", "student_maps": ("3", "4")},
    "vit": {"student": "vit_tiny_patch16_224", "student_args": {k: v for k, v in TINY_VIT.items() if k != "img_size"}},
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 203 validation images of noise in 12 classes: no student is sure of any."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 203)):
        for index in range(count):
            (folder / split / f"c{index % CLASSES:02}").mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"c{index % CLASSES:02}" / f"{index}.png")
    return folder


@pytest.fixture
def logits_seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """The student's logits in training's validations, and those of `measure_accuracy`."""
    seen: dict[str, list[torch.Tensor]] = {"training": [], "evaluate": []}
    forward, classify = Student.forward, Classifier.forward

    def of_student(self: Student, images: torch.Tensor) -> Any:
        outputs = forward(self, images)
        if not self.training:
            seen["training"].append(outputs.logits.float())
        return outputs

    def of_classifier(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        seen["evaluate"].append(classify(self, images).float())
        return seen["evaluate"][-1]

    monkeypatch.setattr(Student, "forward", of_student)
    monkeypatch.setattr(Classifier, "forward", of_classifier)
    return seen


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_run_and_evaluate_and_its_report_agree(
    cli: Cli, noise: Path, tmp_path: Path, logits_seen: dict[str, list[torch.Tensor]], kind: str, precision: str
) -> None:
    keys = STUDENTS[kind] | {
        "data": str(noise), "method": "none", "precision": precision, "accelerator": "cpu", "resolution": 32,
        "crop_fraction": 1, "batch": 12, "micro_batch": 6, "epochs": 1, "warmup_epochs": 0, "lr": 0.001, "workers": 0,
        "ema": 0.5 if kind == "vit" else None,
    }  # fmt: skip
    run = tmp_path / "run"
    result = distill(load(None, keys), run, console=Console(quiet=True))
    trained = [logits for logits in logits_seen["training"] if logits.shape[1] == CLASSES][-34:]
    for given in (run, run / "student.safetensors"):
        logits_seen["evaluate"].clear()
        told = cli("evaluate", given, "--data", noise, "--crop-fraction", "1", "--accelerator", "cpu", "--json")
        assert told.code == 0, told.err
        answer = json.loads(told.out)
        assert (answer["top1"], answer["top5"], answer["images"]) == (result["top1"], result["top5"], 203)
        assert "batch:" not in told.err
        for one, other in zip(trained, logits_seen["evaluate"], strict=True):
            assert torch.equal(one, other), "to the bit"
    predicted = cli("predict", run, noise / "val", "--top", "1", "--batch", "6", "--accelerator", "cpu", "--json")
    answers = [json.loads(line) for line in predicted.out.splitlines()]
    right = sum(Path(each["image"]).parent.name == each["predictions"][0]["class"] for each in answers)
    assert 100 * right / len(answers) == pytest.approx(result["top1"], abs=1e-4)
    (record,) = read_runs([run])
    figures = measure_figures(record, 1000, Console(quiet=True))
    assert figures.images == 203
    assert accuracy(figures.given) == pytest.approx(result["top1"], abs=1e-4)


def test_another_batch_than_the_runs_is_said(cli: Cli, runs: Path) -> None:
    assert measured_as(runs / "none") == {"precision": "float32", "channels_last": True, "batch": 6}
    assert measured_as(runs / "none" / "student.safetensors") == measured_as(runs / "none")
    assert measured_as("resnet18") == {}
    for given, said in (("4", True), ("6", False)):
        told = cli("evaluate", runs / "none", "--batch", given, "--accelerator", "cpu")
        assert told.code == 0, told.err
        assert ("batch: 4 images at once, 6 when its run" in told.err) == said


def test_a_run_in_the_working_directory_is_not_that_of_a_timm_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "none")
    assert measured_as("resnet18") == {}
    assert measured_as("student.safetensors") == measured_as(runs / "none")


def test_a_probe_and_evaluate_agree(cli: Cli, noise: Path, tmp_path: Path, teacher_file: Path) -> None:
    output = tmp_path / "t"
    flags = ("--data", noise, "--precision", "bf16", "--batch", "10", "--workers", "0", "--accelerator", "cpu")
    adapted = cli("adapt", teacher_file, "--output", output, "--json", *flags)
    # Two images a class are too few for a probe of the training split: it is fitted on the larger one.
    assert adapted.code == 2, "three images a class are needed"
    more = ("--train-split", "val", "--val-split", "train")
    adapted = cli("adapt", teacher_file, "--output", output, "--json", *flags, *more)
    assert adapted.code == 0, adapted.err
    told = cli("evaluate", output, "--data", noise, "--val-split", "train", "--accelerator", "cpu", "--json")
    assert round(json.loads(told.out)["top1"], 3) == json.loads(adapted.out)["top1"]
    assert measured_as(output) == {"precision": "bf16", "batch": 10, "channels_last": False}


def test_sharded_runs_keep_their_own_layout(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("{strategy: fsdp, channels_last: true, micro_batch: 3, precision: bf16}")
    assert measured_as(run)["channels_last"] is True
    (run / "result.json").write_text('{"top1": 1.0, "student": "student.safetensors", "processes": 2}')
    assert measured_as(run) == {"channels_last": False, "batch": 3, "precision": "bf16"}


def test_layout_bears_on_the_last_bits() -> None:
    """Otherwise the tests above would tell nothing."""
    torch.manual_seed(0)
    differ = 0
    for name, dtype in (("mobilenetv3_small_050", torch.bfloat16), ("vit_tiny_patch16_224", torch.bfloat16)):
        images = torch.rand(5, 3, 32, 32)
        logits = []
        for laid_out in (False, True):
            torch.manual_seed(1)
            model = Classifier(name, pretrained=False, num_classes=7, resolution=32).eval()
            if laid_out:
                prepare_classifier(model, CPU, dtype, channels_last=True)
            with torch.no_grad(), torch.autocast("cpu", dtype):
                logits.append(model(images).float())
        differ += not torch.equal(*logits)
    assert differ
