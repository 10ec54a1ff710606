"""`scalekd recipes`; every shipped recipe is tried at full size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from conftest import Cli, Outcome

from scalekd.recipes import load, names

IN_CI = ("quickstart", "imagenet/swin_small-resnet50", "imagenet/swin_large-mobilenetv1")


def checked(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert all(math.isfinite(value) for value in found["losses"].values())
    # Weights that start at zero, as in a residual block's last norm, give the layers before them no gradient at first.
    assert found["student_parameters_moved"] > found["student_parameters"] / 2


@pytest.mark.parametrize("name", IN_CI)
def test_a_recipe_is_tried_out(cli: Cli, name: str) -> None:
    checked(cli("distill", "--recipe", name, "--check", "--json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in IN_CI])
def test_every_recipe_is_tried_out(cli: Cli, name: str) -> None:
    checked(cli("distill", "--recipe", name, "--check", "--json"))


@pytest.mark.parametrize("method", ["none", "kd", "dist", "ofa", "fd"])
def test_a_recipe_is_tried_out_with_every_method(cli: Cli, method: str) -> None:
    checked(cli("distill", "--recipe", "quickstart", "--method", method, "--check", "--json"))


def test_the_list_is_complete_and_for_machines_too(cli: Cli) -> None:
    listed = json.loads(cli("recipes", "--json").out)
    assert [recipe["name"] for recipe in listed] == names()
    assert all(recipe["student"] for recipe in listed)
    text = cli("recipes").out
    assert all(name in text for name in names())


def test_one_is_shown_resolved(cli: Cli, tmp_path: Path) -> None:
    shown = cli("recipes", "show", "imagenet/swin_large-resnet50").out
    keys = yaml.safe_load(shown)
    assert (keys["optimizer"], keys["student"], keys["alpha_spatial"]) == ("lamb", "resnet50", 0.08)
    assert "base" not in keys
    (tmp_path / "again.yaml").write_text(shown)
    assert load(tmp_path / "again.yaml", {}) == load("imagenet/swin_large-resnet50", {})
    cli("recipes", "show", "imagenet/swin_large-resnet5").refused("did you mean 'imagenet/swin_large-resnet50'")


def test_a_trial_says_what_it_did_and_writes_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("distill", "--recipe", "quickstart", "--check")
    assert "CAP_prev" in outcome.err
    assert "one step: loss" in outcome.out
    assert not list(tmp_path.iterdir())


def test_a_trial_of_a_teacher_whose_weights_bring_the_head_has_its_logit_term(cli: Cli) -> None:
    outcome = cli("distill", "--recipe", "imagenette", "--check", "--json")
    assert "kd" in json.loads(outcome.out)["losses"]
    assert "its weights must include one" in outcome.err


def test_a_trial_takes_no_flags_of_a_run(cli: Cli, tmp_path: Path) -> None:
    for flags in (("--resume",), ("--overwrite",), ("--output", tmp_path)):
        cli("distill", "--recipe", "quickstart", "--check", *flags).refused("check", "writes nothing")


def test_a_run_needs_an_output(cli: Cli) -> None:
    cli("distill", "--recipe", "quickstart").refused("--output")
