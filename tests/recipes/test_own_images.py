"""The recipe own-images, and the rates of students that start from weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from PIL import Image

import scalekd
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.recipes.own_images import choose_sizes


def chosen(images: int, **keys: object) -> dict[str, object]:
    return choose_sizes(images, load("own-images", keys), keys)


@pytest.mark.parametrize(
    ("images", "batch"), [(1, 1), (5, 5), (100, 8), (300, 16), (1000, 32), (5000, 256), (10**7, 256)]
)
def test_the_batch_leaves_enough_steps_in_an_epoch(images: int, batch: int) -> None:
    assert chosen(images)["batch"] == batch


@pytest.mark.parametrize(("images", "scratch", "weights"), [(300, 200, 50), (2000, 100, 25), (100_000, 30, 10)])
def test_fewer_images_are_viewed_more_often(images: int, scratch: int, weights: int) -> None:
    assert chosen(images)["epochs"] == scratch
    assert chosen(images, student_pretrained=True)["epochs"] == weights


def test_the_rate_follows_the_batch() -> None:
    assert chosen(1000)["lr"] == pytest.approx(1e-3)  # batch 32
    assert chosen(128)["lr"] == pytest.approx(5e-4)  # batch 8
    assert chosen(1000, batch=128)["lr"] == pytest.approx(2e-3)


def test_what_is_set_is_kept() -> None:
    recipe = load("own-images", {"batch": 10, "epochs": 3, "lr": 0.5}, count=lambda _recipe: 1000)
    assert (recipe.batch, recipe.epochs, recipe.lr, recipe.warmup_epochs) == (10, 3, 0.5, 1)


def test_one_epoch_has_no_warm_up() -> None:
    assert load("own-images", {"epochs": 1}, count=lambda _recipe: 1000).warmup_epochs == 0


def test_a_recipe_that_builds_on_it_follows_the_images_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: own-images\nepochs: 7\n")
    said: list[str] = []
    recipe = load(tmp_path / "mine.yaml", {}, said.append, lambda _recipe: 1024)
    assert (recipe.batch, recipe.epochs) == (64, 7)
    assert said == ["sizes     for 1024 training images: batch 64, lr 0.0014, warmup_epochs 1, validate_every 1"]


def test_sizes_has_one_value(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sized_by: labels\n")
    with pytest.raises(UserError, match="sized_by must be images, or be left out"):
        load(tmp_path / "mine.yaml", {})


def test_a_run_says_and_stores_what_was_chosen(data: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ["distill", "--recipe", "own-images", "--method", "none", "--student", "resnet10t", "--data", data]
    flags += ["--resolution", "32", "--epochs", "2", "--workers", "0", "--output", tmp_path / "run"]
    done = cli(*flags)
    assert "sizes     for 12 training images: batch 8, lr 0.0005" in done.err, done.err
    stored = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "batch: 8\n" in stored
    assert "sized_by" not in stored
    again = cli(*flags, "--auto-resume", "--json")  # the same settings
    assert json.loads(again.out)["samples"] == 16


def test_without_data_it_is_asked_for(tmp_path: Path, cli: Cli) -> None:
    flags = ["--recipe", "own-images", "--method", "none", "--student", "resnet10t", "--output", tmp_path / "run"]
    cli("distill", *flags).refused("data: none is given")
    assert not (tmp_path / "run").exists()


def test_a_call_counts_the_images_of_data_sets(tmp_path: Path) -> None:
    train, val = ([(Image.new("RGB", (32, 32), color), i % 2) for i in range(20)] for color in ("red", "blue"))
    done = scalekd.distill(
        recipe="own-images", method="none", student="resnet10t", data=(train, val), output=tmp_path, resolution=32,
        epochs=1, workers=0, quiet=True,
    )  # fmt: skip
    assert done.result["samples"] == 16  # two batches of 8


def test_a_run_continues_with_the_sizes_of_its_start(data: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ["distill", "--recipe", "own-images", "--method", "none", "--student", "resnet10t", "--data", data]
    flags += ["--resolution", "32", "--workers", "0", "--output", tmp_path / "run"]
    assert cli(*flags, "--epochs", "2").code == 0
    longer = cli(*flags, "--epochs", "45", "--resume")  # validate_every would be 2
    assert longer.code == 0, longer.err
    assert "validate_every: 1\n" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_several_students_from_weights_have_the_epochs_of_one(data: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ["distill", "--recipe", "own-images", "--method", "none", "--data", data, "--resolution", "32"]
    assert cli(*flags, "--student", "resnet10t", "--epochs", "1", "--output", tmp_path / "run").code == 0
    file = tmp_path / "run" / "student.safetensors"
    shutil.copy(file, tmp_path / "other.safetensors")
    students = ("--student", file, "--student", tmp_path / "other.safetensors")
    said = cli(*flags, *students, "--lr", "0.001", "--warmup-epochs", "60", "--output", tmp_path / "two")
    said.refused("warmup_epochs: 60 must be less than the 50 epochs")


def test_a_call_continues_with_the_sizes_of_its_start(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"recipe": "own-images", "method": "none", "student": "resnet10t", "data": data}
    settings |= {"resolution": 32, "workers": 0, "quiet": True, "output": tmp_path / "run"}
    scalekd.distill(**settings, epochs=2)
    longer = scalekd.distill(**settings, epochs=45, resume=True)  # validate_every would be 2
    assert longer.result["epochs_before"] == [2]
