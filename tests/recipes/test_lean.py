"""`lean` sets the keys of the lean form, and any of them that is set itself is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from scalekd.commands.inspect import lean_form
from scalekd.errors import UserError
from scalekd.methods.registry import LEAN
from scalekd.recipes import Recipe, load
from scalekd.recipes.load import dump


def form(keys: dict[str, Any]) -> tuple[str, bool]:
    recipe = load(None, keys)
    return recipe.projector, recipe.tpp


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ("cap", True)),
        ({"lean": False}, ("cap", True)),
        ({"lean": True}, ("linear", False)),
        ({"lean": True, "tpp": True}, ("linear", True)),
        ({"lean": True, "projector": "cap"}, ("cap", False)),
    ],
)
def test_lean_sets_what_is_not_set(keys: dict[str, Any], expected: tuple[str, float]) -> None:
    assert form(keys) == expected


def test_a_lean_recipe_survives_a_round_trip() -> None:
    recipe = load(None, {"lean": True, "batch": 64})
    assert Recipe.model_validate(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"method": "kd"}, "lean is no key of method kd"),
        ({"method": "none"}, "lean is no key of method none"),
        ({"stem": "conv1x1"}, "stem: is of CAP, which linear projectors"),
        ({"heads": [2, 2]}, "heads: is of CAP"),
        ({"query": "learned"}, "query: a linear projector has none"),
        ({"stages": ["previous"]}, "stages: previous is compared through the proxies"),
        ({"tpp": True, "stages": ["last"]}, "without previous and without the proxy query TPP has no use"),
    ],
)
def test_lean_is_refused_where_it_has_no_meaning(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load(None, {"lean": True} | keys)


def test_a_file_and_a_flag_are_combined(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("lean: true\n")
    recipe = load(str(file), {"tpp": True})
    assert (recipe.projector, recipe.tpp) == ("linear", True)


@pytest.mark.parametrize("value", [1, "true", "on"])
def test_lean_is_a_boolean(value: object) -> None:
    with pytest.raises(UserError, match="lean: input should be a valid boolean"):
        load(None, {"lean": value})


def test_the_recipe_of_a_finished_run_can_be_made_lean_and_exact_again(tmp_path: Path) -> None:
    exact, lean = tmp_path / "exact.yaml", tmp_path / "lean.yaml"
    exact.write_text(dump(load(None, {})))
    made = load(str(exact), {"lean": True})
    assert (made.projector, made.tpp) == ("linear", False)
    lean.write_text(dump(made))
    assert load(str(lean), {}) == made
    again = load(str(lean), {"lean": False})
    assert (again.projector, again.tpp) == ("cap", True)


def test_inspect_compares_the_lean_form(cli: Cli) -> None:
    pair = ("inspect", "vit_tiny_patch16_224", "resnet18", "--resolution", "64", "--device", "a100", "--batch", "8")
    plain, lean = (json.loads(cli(*pair, "--json", *more).out) for more in ((), ("--lean",)))
    assert "lean" not in lean, "it is the plan itself"
    assert plain["lean"]["flops_total"] == lean["costs"]["flops_total"]
    assert plain["lean"]["flops_total"] < plain["costs"]["flops_total"]
    assert plain["lean"]["cache"]["bf16"] == lean["costs"]["cache"]["bf16"]
    line = "lean      --lean (projector linear, tpp False, alpha_spatial 0.32, alpha_frequency 0.24) takes "
    assert line in cli(*pair).out


@pytest.mark.parametrize("keys", [{"method": "kd"}, {"stem": "conv1x1"}, {"tpp": False}, {"lean": True}])
def test_only_the_exact_form_is_compared_with_the_lean_one(keys: dict[str, Any]) -> None:
    assert lean_form(load(None, {})) == load(None, {"lean": True})
    assert lean_form(load(None, keys)) is None


def test_the_help_names_what_lean_sets() -> None:
    text = Recipe.model_fields["lean"].description or ""
    assert all(f"{key} {value}" in " ".join(text.split()) for key, value in LEAN.items())
