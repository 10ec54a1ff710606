"""`distill --pilot` compares settings on a part of the training images, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RUN, Cli, write_images

from scalekd.data import Files, Split
from scalekd.data.hold_out import hold_out
from scalekd.engine.learner import NonFiniteLossError
from scalekd.errors import UserError
from scalekd.methods.registry import LEAN
from scalekd.recipes import Recipe, load
from scalekd.recipes.load import dump
from scalekd.tasks.distill import distill
from scalekd.tasks.distill import pilot as module
from scalekd.tasks.distill.pilot import Pilot, Trial


def split(labels: list[int]) -> Split:
    names = [f"{number}.png" for number in range(len(labels))]
    return Split(Files(Path("images"), names), np.array(labels, np.int32), ("a", "b"))


def test_classes_keep_their_shares_in_both_parts() -> None:
    train, held = hold_out(split([0] * 80 + [1] * 20), 40, 20, seed=0)
    assert [(part.labels == 1).sum() for part in (train, held)] == [pytest.approx(8, abs=2), pytest.approx(4, abs=2)]
    assert len(train) == 40
    assert len(held) == 20
    assert not set(train.store.names) & set(held.store.names)
    assert train.store.locate(0) == f"images/{train.store.names[0]}"
    assert all(train.labels[index] == (int(name[:-4]) >= 80) for index, name in enumerate(train.store.names))


def test_the_draw_depends_on_the_seed_only() -> None:
    whole = split([0, 1] * 50)
    names = [hold_out(whole, 50, 20, seed)[1].fingerprint for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_images_without_labels_are_not_measured_on() -> None:
    train, held = hold_out(split([-1] * 50 + [0, 1] * 5), 100, 2, seed=0)
    assert (held.labels >= 0).all()
    assert len(held) == 2
    assert (train.labels >= 0).sum() == 8, "labels remain to train on"
    assert len(train) == 58


@pytest.fixture
def flags(data: Path, teacher_file: Path) -> tuple[str | Path, ...]:
    return ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--no-check-teacher")


def test_settings_are_compared_and_flags_are_named(
    cli: Cli, flags: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    outcome = cli("distill", *flags, "--pilot", "5")
    assert outcome.code == 0, outcome.err
    assert "10 of 12 training images, 2 others to measure on; 2 epochs, 2 steps a run" in outcome.err
    assert "--lr 0.0025 " in outcome.out
    assert "--lean" in outcome.out
    assert "best      --lr 0.0" in outcome.out
    assert list((tmp_path / "temporary").iterdir()) == []


def test_partly_labelled_images_are_trained_on_too(
    cli: Cli, flags: tuple[str | Path, ...], data: Path, tmp_path: Path
) -> None:
    (data / "unlabelled").mkdir()
    for index, image in enumerate(sorted(write_images(tmp_path / "more", 4, seed=2).glob("*/*.png"))):
        image.rename(data / "unlabelled" / f"{index}.png")
    outcome = cli("distill", *flags, "--pilot", "5", "--logit-weight", "0")
    assert outcome.code == 0, outcome.err
    assert "22 of 24 training images, 2 others to measure on" in outcome.err


def test_the_recipe_of_a_finished_run_is_made_lean(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(dump(load(None, {"data": str(data), "teacher": "vit_tiny_patch16_224", "student": "resnet18"})))
    recipe = load(str(own), {})
    assert module._can_be_lean(recipe)
    assert (lean := module._changed(recipe, {"lean": True})).projector == "linear"
    assert not lean.tpp
    assert not module._can_be_lean(load(None, LEAN | {"method": "scalekd"}))


def test_without_a_cache_the_teacher_is_charged_for_every_step(data: Path) -> None:
    train = split([0, 1] * 50_000)
    costs = module._Costs(teacher=0.01, step=0.001, loading=0.0)
    keys = {"batch": 10, "epochs": 100, "teacher": "vit_tiny_patch16_224", "data": str(data)}
    cached, mixed = (module._plan(load(None, keys | more), train, 10, costs) for more in ({}, {"mixup": 0.8}))
    assert cached.kept > 4 * mixed.kept
    assert mixed.held == mixed.kept // 4
    slow = module._plan(load(None, keys), train, 10, costs._replace(loading=0.1))
    assert slow.kept < mixed.kept
    assert slow.held == 200


def test_json_holds_every_run(cli: Cli, flags: tuple[str | Path, ...]) -> None:
    outcome = cli("distill", *flags, "--pilot", "5", "--json", "--method", "kd")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [trial["keys"] for trial in found["trials"]] == [{"lr": 0.01}, {"lr": 0.0025}, {"lr": 0.04}]
    assert found["flags"] == f"--lr {found['best']['lr']:g}"


def test_the_users_own_keys_are_kept(data: Path, teacher_file: Path) -> None:
    own = {"teacher": str(teacher_file), "data": str(data), "lr": 0.01}
    assert list(module._forms(load(None, own | {"stem": "none"}), {})) == [{"projector_lr_scale": 0.025}]
    recipe = load(None, own)
    forms = list(module._forms(recipe, {"lr": 0.04}))
    assert forms == [{"projector_lr_scale": 0.00625}, {"lean": True}]  # a quarter of 1e-3
    assert list(module._forms(load(None, {"lean": True, "lr": 1e-3}), {})) == [{"projector_lr_scale": 0.25}]


def test_a_rate_that_diverges_is_a_row(
    cli: Cli, flags: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = distill

    def diverging(recipe: Recipe, *args: Any, **more: Any) -> Any:
        if recipe.lr == 0.04:
            raise NonFiniteLossError("loss: NaN")
        return real(recipe, *args, **more)

    monkeypatch.setattr(module, "distill", diverging)
    outcome = cli("distill", *flags, "--pilot", "5", "--method", "none")
    assert outcome.code == 0, outcome.err
    assert "failed" in outcome.out
    assert "pilot     lr 0.04: failed: loss: NaN" in outcome.err


def test_a_form_that_cannot_be_trained_is_a_row_and_a_wrong_recipe_is_refused(
    cli: Cli, flags: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = distill, [{"lean": True}]

    def picky(recipe: Recipe, *args: Any, **more: Any) -> Any:
        if any(getattr(recipe, key) == value for keys in refused for key, value in keys.items()):
            raise UserError("student: has a map of one position")
        return real(recipe, *args, **more)

    monkeypatch.setattr(module, "distill", picky)
    outcome = cli("distill", *flags, "--pilot", "5", "--json")
    assert outcome.code == 0, outcome.err
    failures = [trial["failure"] for trial in json.loads(outcome.out)["trials"]]
    assert failures == [*[""] * 4, "student: has a map of one position"]
    refused.append({"lean": False})
    cli("distill", *flags, "--pilot", "5").refused("student: has a map of one position")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--pilot", "0"), ("pilot: in 0 minutes only 0 images", "fewer than a batch of 6", "--pilot 1 or more")),
        (
            ("--pilot", "5", "--batch", "12", "--micro-batch", "12"),
            ("pilot: of 12 training images, 10 remain", "batch of 12"),
        ),
        (("--pilot", "5", "--labels", "none"), ("pilot:", "--labels none")),
        (("--pilot", "5", "--devices", "2"), ("pilot:", "--devices")),
        (("--pilot", "5", "--check"), ("--pilot",)),
        (("--pilot", "5", "--output", "x"), ("pilot: writes nothing", "--output")),
        (("--pilot", "5", "--student", "resnet34"), ("pilot: tries one student",)),
        (("--pilot", "-1"), ("--pilot",)),
        (("--pilot", "soon"), ("--pilot",)),
        (("--pilot", "inf"), ("pilot: inf is no number of minutes",)),
    ],
)
def test_bad_input(cli: Cli, flags: tuple[str | Path, ...], more: tuple[str, ...], parts: tuple[str, ...]) -> None:
    cli("distill", *flags, *more).refused(*parts)


def test_the_best_is_clear_only_beyond_the_errors() -> None:
    own, better, best = (Trial({"lr": rate}, top1, 1.0) for rate, top1 in ((1, 50.0), (2, 55.0), (4, 80.0)))
    assert not Pilot(80, 20, 4, 10, (own, better)).clear
    assert Pilot(80, 20, 4, 10, (own, best)).clear
    assert Pilot(80, 20, 4, 10, (own, better)).error(own) == pytest.approx(10.66, abs=0.01)
    assert Pilot(80, 20, 4, 10, (Trial({"lr": 1}, None, 0.0), better)).clear
