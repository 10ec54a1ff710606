"""Training without labels, and with labels on some images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY_RUN, TINY_VIT, Cli, Outcome, write_images
from safetensors.torch import load_file

from scalekd.models import Classifier


@pytest.fixture
def run(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> Cli:
    def call(*more: str | Path) -> Outcome:
        base = ("--data", data, "--output", tmp_path / "run", "--teacher", teacher_file, "--no-check-teacher")
        return cli("distill", *base, *TINY_RUN, *more)

    return call


def terms(folder: Path) -> set[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key.removeprefix("train/") for line in lines for key in line if key.startswith("train/")} - {"loss"}


def result(folder: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((folder / "result.json").read_text())
    return read


def test_without_labels_logits_and_features_teach(run: Cli, tmp_path: Path) -> None:
    outcome = run("--labels", "none")
    assert outcome.code == 0, outcome.err
    assert "12 training images (12 without label)" in outcome.err
    assert terms(tmp_path / "run") == {
        "kd",
        "proxy_spatial",
        "proxy_frequency",
        "student_spatial",
        "student_frequency",
    }
    assert isinstance(result(tmp_path / "run")["top1"], float), "the validation images have labels"


def test_without_labels_and_validation_images_the_run_still_leaves_a_student(
    run: Cli, cli: Cli, data: Path, tmp_path: Path
) -> None:
    shutil.rmtree(data / "val")
    outcome = run("--labels", "none")
    assert outcome.code == 0, outcome.err
    assert "top1 not measured" in outcome.out
    assert "epoch 2/2  loss" in outcome.err
    assert result(tmp_path / "run")["top1"] is None
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) == 2
    head = load_file(tmp_path / "run" / "student.safetensors")["fc.weight"]
    assert len(head) == 3, "the teacher's classes"


def test_features_alone_train_a_student_without_a_head(run: Cli, cli: Cli, data: Path, tmp_path: Path) -> None:
    outcome = run("--labels", "none", "--logit-weight", "0")
    assert outcome.code == 0, outcome.err
    assert "no head to train" in outcome.err
    assert "fc.weight" not in load_file(tmp_path / "run" / "student.safetensors")
    file = tmp_path / "run" / "student.safetensors"
    cli("evaluate", file, "--data", data).refused("has no head")
    adapted = cli("adapt", file, "--data", data, "--batch", "6", "--workers", "0", "--output", tmp_path / "adapted")
    assert adapted.code == 0, adapted.err
    assert cli("evaluate", tmp_path / "adapted", "--data", data).code == 0


def test_an_unlabelled_folder_is_used_beside_the_labels(run: Cli, data: Path, tmp_path: Path) -> None:
    write_images(data / "unlabelled", 2, seed=5)
    outcome = run()
    assert outcome.code == 0, outcome.err
    assert "18 training images (6 without label)" in outcome.err
    assert result(tmp_path / "run")["samples"] == 36
    assert {"task", "kd"} <= terms(tmp_path / "run")
    alone = run("--method", "none", "--overwrite")
    assert "12 training images and" in alone.err, "labels alone cannot use them"
    run("--mixup", "0.2", "--overwrite").refused("mixup", "without labels")


def test_mixed_images_need_no_labels(run: Cli) -> None:
    assert run("--labels", "none", "--mixup", "0.2").code == 0


def test_without_labels_a_teacher_without_a_head_needs_logit_weight_0(
    run: Cli, teacher_file: Path, data: Path, tmp_path: Path
) -> None:
    shutil.rmtree(data / "val")
    headless = tmp_path / "headless.safetensors"
    Classifier("vit_tiny_patch16_224", pretrained=False, num_classes=0, resolution=32, **TINY_VIT).save(headless)
    flags = ("--teacher", headless, "--labels", "none")
    run(*flags).refused("has no head", "scalekd adapt", "logit_weight to 0")
    assert run(*flags, "--logit-weight", "0", "--mixup", "0.2").code == 0
    run("--labels", "none", "--method", "none", "--overwrite").refused("labels", "another method")


@pytest.mark.parametrize("method", ["kd", "dist", "ofa", "fd"])
def test_every_baseline_trains_in_the_same_loop(run: Cli, tmp_path: Path, method: str) -> None:
    outcome = run("--method", method)
    assert outcome.code == 0, outcome.err
    assert result(tmp_path / "run")["method"] == method
    assert "task" in terms(tmp_path / "run")
    assert len(terms(tmp_path / "run")) > 1
