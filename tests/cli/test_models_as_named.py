"""What commands accept as a model, what they report on its weights and classes, and whether their advice works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from conftest import CLASSES, TINY_CNN, TINY_RUN, TINY_SETTINGS, TINY_VIT, Cli
from safetensors.torch import save_file

from scalekd.models import Classifier

QUICK = ("--batch", "6", "--workers", "0", "--precision", "float32")


@pytest.fixture
def cnn_file(tmp_path: Path) -> Path:
    """Save a CNN with the three classes of the data, in another order than the folders."""
    torch.manual_seed(0)
    path = tmp_path / "cnn.safetensors"
    Classifier("resnet18", pretrained=False, num_classes=3, resolution=32, **TINY_CNN).save(path, CLASSES[::-1])
    return path


def test_a_part_of_the_classes_is_measured_by_name(cli: Cli, data: Path, cnn_file: Path) -> None:
    """Each pair of the three classes is measured, so each image twice, with the result that it has among all."""
    whole = json.loads(cli("evaluate", cnn_file, "--data", data, *QUICK, "--json").out)
    right = 0
    for kept in (("blue", "green"), ("blue", "red"), ("green", "red")):
        part = data.parent / "-".join(kept)
        for name in kept:
            shutil.copytree(data / "val" / name, part / "val" / name)
        outcome = cli("evaluate", cnn_file, "--data", part, *QUICK, "--json")
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        assert (found["images"], sorted(found["classes"]), found["classes_of_model"]) == (4, list(kept), 3)
        right += round(found["top1"] * 4 / 100)
        assert "the data has 2 of the model's 3, measured by name" in outcome.err
        assert "adapt" not in outcome.err
    assert right == 2 * round(whole["top1"] * 6 / 100)


def test_a_test_set_of_one_class_is_measured(cli: Cli, data: Path, cnn_file: Path) -> None:
    """The mean of the three classes' accuracies is the accuracy on all images."""
    whole = json.loads(cli("evaluate", cnn_file, "--data", data, *QUICK, "--json").out)
    alone = []
    for name in CLASSES:
        shutil.copytree(data / "val" / name, data.parent / name / "val" / name)
        outcome = cli("evaluate", cnn_file, "--data", data.parent / name, *QUICK, "--json")
        assert outcome.code == 0, outcome.err
        assert "the data has 1 of the model's 3, measured by name" in outcome.err
        alone.append(json.loads(outcome.out)["top1"])
    assert sum(alone) / 3 == pytest.approx(whole["top1"], abs=1e-4)


def test_imagenets_ids_are_a_part_of_a_timm_models_classes(cli: Cli, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "thousand.safetensors"
    save_file(timm.create_model("resnet18", num_classes=1000, **TINY_CNN).state_dict(), path)
    for name, wnid in zip(CLASSES, ("n01440764", "n02102040_springer", "n03888257"), strict=True):
        (data / "val" / name).rename(data / "val" / wnid)
    options = ("--weights", path, "--model-args", str(TINY_CNN).replace("'", ""), "--resolution", "32", *QUICK)
    outcome = cli("evaluate", "resnet18", "--data", data, *options, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["classes"] == ["n01440764", "n02102040_springer", "n03888257"]
    assert "3 of the model's 1000" in outcome.err
    (data / "val" / "n01440764").rename(data / "val" / "others")
    outcome = cli("evaluate", "resnet18", "--data", data, *options)
    outcome.refused("has 1000 classes, the data 3 classes")


def test_advice_for_other_classes_can_be_followed(cli: Cli, data: Path, cnn_file: Path, tmp_path: Path) -> None:
    """For a CNN's weights file `adapt` fits a head without calling it a teacher; a CNN's name is for `distill`."""
    for name in CLASSES:
        (data / "val" / name).rename(data / "val" / f"my-{name}")
        (data / "train" / name).rename(data / "train" / f"my-{name}")
    for split in ("train", "val"):
        shutil.copytree(data / split / "my-red", data / split / "more")
    outcome = cli("evaluate", cnn_file, "--data", data, *QUICK)
    outcome.refused(
        "has 3 classes, the data 4 classes ('more' is not one of the model's)", "`scalekd adapt` fits a head"
    )
    adapted = cli("adapt", cnn_file, "--data", data, "--output", tmp_path / "adapted", *QUICK)
    assert adapted.code == 0, adapted.err
    assert "student" in adapted.out
    assert "--teacher" not in adapted.out
    assert cli("evaluate", tmp_path / "adapted", "--data", data, *QUICK).code == 0
    for mode in ("probe", "finetune"):
        outcome = cli("adapt", "resnet18", "--mode", mode, "--data", data, "--output", tmp_path / "x")
        outcome.refused(
            "adapt: resnet18 is not a vision transformer", "`scalekd distill --method none --student resnet18"
        )


def test_a_run_says_how_its_models_weights_were_read(cli: Cli, data: Path, tmp_path: Path) -> None:
    """A teacher whose keys have a prefix, at its default of 320 px; a student that starts from another head."""
    vit = TINY_VIT | {"img_size": 320}
    start = timm.create_model("resnet18", num_classes=10, **TINY_CNN).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=3, **vit).state_dict()
    save_file({f"module.{key}": value for key, value in teacher.items()}, tmp_path / "t.safetensors")
    teaching = ("--teacher", "vit_tiny_patch16_224", "--teacher-weights", tmp_path / "t.safetensors")
    args = ("--teacher-args", str({k: v for k, v in vit.items() if k != "img_size"}).replace("'", ""))
    outcome = cli(
        "distill", *teaching, *args, "--student-weights", tmp_path / "start.safetensors", "--data", data,
        "--output", tmp_path / "run", "--no-check-teacher", *TINY_RUN, "--epochs", "1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for line in (
        "teacher   its keys are read without 'module.'",
        "teacher   it sees 320 px, its default: 1,600 tokens an image, 2.0 times as many as at 224 px",
        "student   head is fresh: the file has 10 classes, the data 3",
    ):
        assert line in outcome.err


def test_folders_teach(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    """The folder of `adapt` can be a teacher, and its hash is recorded; a CNN's or an unfinished run is refused."""
    folder = tmp_path / "adapted"
    folder.mkdir()
    shutil.copyfile(teacher_file, folder / "teacher.safetensors")
    run = ("distill", "--teacher", folder, "--data", data, "--no-check-teacher", *TINY_RUN, "--epochs", "1")
    outcome = cli(*run, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert str(folder / "teacher.safetensors") in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "teacher weights" in json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert cli("inspect", folder, "test_resnet", "--resolution", "32").code == 0
    second = ("distill", "--student", "resnet18", "--data", data, "--output", tmp_path / "b", *TINY_SETTINGS)
    cli(*second, "--teacher", tmp_path / "run").refused("resnet18 is not a vision transformer")
    (tmp_path / "run" / "result.json").unlink()
    cli(*second, "--teacher", tmp_path / "run").refused("is not finished")


def test_a_start_with_other_class_names_says_so(cli: Cli, data: Path, cnn_file: Path, tmp_path: Path) -> None:
    outcome = cli(
        "distill", "--student", cnn_file, "--method", "none", "--data", data, "--output", tmp_path / "r", *TINY_SETTINGS
    )
    assert outcome.code == 0, outcome.err
    assert "the file's classes are in another order: 'red' where the data has 'blue'" in outcome.err
