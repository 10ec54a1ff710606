"""A run that cannot teach its student anything says so, before it starts and when it has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from conftest import TINY_KEYS, TINY_RUN, Cli, write_images
from rich.console import Console

from scalekd.data import Files, Split
from scalekd.exports.official import import_checkpoint
from scalekd.exports.onnx import OnnxClassifier, export_onnx
from scalekd.exports.program import export_program
from scalekd.exports.quantise import quantise
from scalekd.exports.timm_folder import is_timm_folder, read_timm_folder, write_timm_folder
from scalekd.models import Classifier
from scalekd.recipes import load
from scalekd.report.measure import Figures
from scalekd.report.record import read_runs
from scalekd.report.words import summary
from scalekd.runs.folder import RunFolder
from scalekd.tasks.adapt import finetune, probe
from scalekd.tasks.detection import run as detection
from scalekd.tasks.distill import distill, distill_students
from scalekd.tasks.distill.no_learning import few_steps, nothing_learned
from scalekd.tasks.segmentation import run as segmentation


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "said"),
    [
        (301, 256, 3, "3 steps in all (3 epochs of 1) are too few to train a student; use --batch 16 (18 steps per "
                      "epoch) and --epochs 12"),
        (301, 256, 100, "--batch 16 (18 steps per epoch)"),
        (10_000, 256, 3, "117 steps in all (3 epochs of 39) are too few to train a student; use --epochs 6"),
        (100, 16, 100, "600 steps in all (100 epochs of 6) are too few to train a student; use --batch 8 (12"),
        (7, 4, 5, "use --batch 2 (3 steps per epoch) and --epochs 67"),
        (5, 1, 2, "use --epochs 40"),
    ],
)  # fmt: skip
def test_too_few_steps_are_said_with_the_flags_that_give_more(images: int, batch: int, epochs: int, said: str) -> None:
    warning = few_steps(images, batch, epochs)
    assert warning is not None
    assert said in warning


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(160, 16, 20), (5, 2, 500), (100, 16, 400), (60, 8, 200), (1_281_167, 1024, 1), (3000, 256, 100)],
)
def test_enough_steps_are_not_talked_about(images: int, batch: int, epochs: int) -> None:
    assert few_steps(images, batch, epochs) is None


def _split(*counts: int) -> Split:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Split(Files(Path(), [str(n) for n in labels]), labels, tuple(map(str, range(len(counts)))))


@pytest.mark.parametrize(
    ("losses", "top1", "counts", "said"),
    [
        ([1.0986, 1.0986, 1.0986], 90.0, (50, 50), ["the loss was 1.099 from the first"]),
        ([0.0, 0.0, 0.0, 0.0], 90.0, (50, 50), ["the loss was 0 from the first"]),
        ([2.0, 1.0, 0.5], 52.0, (50, 50), ["top1 52.00% on 100 images is not significantly better"]),
        ([2.0, 1.0, 0.5], 90.0, (900, 100), ["the most frequent class (90.0%, give or take 1.9)"]),
        ([6.9, 6.9, 6.9], 0.1, (1,) * 1000, ["the loss was 6.9", "top1 0.10% on 1000 images"]),
        ([2.0, 1.0, 0.5], 95.0, (900, 100), []),
        ([2.0, 1.0, 0.5], 70.0, (50, 50), []),
        ([2.0, 2.0], 90.0, (50, 50), []),
        ([1.1, 1.08, 1.09], None, (), []),
    ],
)
def test_a_run_that_learned_nothing_says_so(
    losses: list[float], top1: float | None, counts: tuple[int, ...], said: list[str]
) -> None:
    found = nothing_learned(losses, top1, _split(*counts))
    assert len(found) == len(said)
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence


def test_the_warnings_are_printed_kept_and_reported(cli: Cli, tmp_path: Path, data: Path) -> None:
    flags = ("--method", "none", "--data", data, "--output", tmp_path / "run", *TINY_RUN, "--lr", "1e-9")
    outcome = cli("distill", *flags)
    assert outcome.code == 0, outcome.err
    assert "warning: 4 steps in all (2 epochs of 2)" in outcome.err
    (warning,) = json.loads((tmp_path / "run" / "result.json").read_text())["warnings"]
    assert "on 6 images is not significantly better than always predicting the most frequent class (33.3%" in warning
    assert outcome.err.count(warning) == 1
    (record,) = read_runs([tmp_path / "run"])
    assert f"Warning: {warning}." in summary(record, Figures())


def test_few_neighbours_are_said(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    few = cli("evaluate", teacher_file, "--knn", "--data", data, "--workers", "0")
    assert few.code == 0, few.err
    assert "knn: 12 training images are fewer than the 20 neighbours that vote" in few.err
    write_images(tmp_path / "more" / "train", 7)
    write_images(tmp_path / "more" / "val", 2, seed=1)
    enough = cli("evaluate", teacher_file, "--knn", "--data", tmp_path / "more", "--workers", "0")
    assert (enough.code, "fewer than" in enough.err) == (0, False)


def test_python_takes_paths_as_text(listed: Path, teacher_file: Path, tmp_path: Path) -> None:
    recipe = load(None, TINY_KEYS | {"data": str(listed), "method": "none", "epochs": 1, "teacher": str(teacher_file)})
    quiet = Console(quiet=True)
    result = distill(recipe, str(tmp_path / "run"), console=quiet)
    assert (tmp_path / "run" / result["student"]).is_file()
    group = distill_students(recipe, ["resnet18", "resnet26"], str(tmp_path / "group"), console=quiet)
    assert sorted(group) == ["resnet18", "resnet26"]
    probe(recipe, str(tmp_path / "probe"), console=quiet)
    finetune(recipe, str(tmp_path / "tuned"), resolution=None, resume=False, overwrite=False, console=quiet)
    assert [record.name for record in read_runs([str(tmp_path / "run"), str(tmp_path / "group")])] == [
        "run", "resnet18", "resnet26",
    ]  # fmt: skip
    student = Classifier(str(tmp_path / "run" / "student.safetensors"))
    write_timm_folder(student, str(tmp_path / "timm"), None)
    assert is_timm_folder(str(tmp_path / "timm"))
    assert read_timm_folder(str(tmp_path / "timm")).num_classes == 3
    assert RunFolder(str(tmp_path / "run")).finished


def test_python_of_other_tasks_takes_paths_as_text() -> None:
    for function, name in (
        (detection.train, "output"), (detection.evaluate, "output"), (segmentation.train, "output"),
        (segmentation.evaluate, "output"), (export_onnx, "path"), (export_program, "path"), (quantise, "target"),
        (import_checkpoint, "path"), (OnnxClassifier.__init__, "path"),
    ):  # fmt: skip
        assert get_type_hints(function)[name] == str | Path, function
