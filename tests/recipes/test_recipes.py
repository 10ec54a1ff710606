from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scalekd.errors import UserError
from scalekd.recipes import GROUPS, Recipe, dump, load, names


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(name, {})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe))
    assert load(file, {}) == recipe


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert (recipe.alpha_spatial, recipe.alpha_frequency, recipe.softmax_scale) == (0.08, 0.06, 5.0)
    assert (recipe.temperature, recipe.tail_blocks, recipe.views) == (1.0, 2, ("spatial", "frequency"))


def test_every_key_belongs_to_one_group_and_says_what_it_means() -> None:
    grouped = [name for group in GROUPS for name in group.model_fields]
    assert sorted(grouped) == sorted(Recipe.model_fields)
    assert all(field.description for field in Recipe.model_fields.values())


def test_overrides_win() -> None:
    assert load("imagenette", {"epochs": 3}).epochs == 3


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"epcohs": 3}, ("epcohs", "did you mean 'epochs'")),
        ({"lr": -1}, ("lr", "-1")),
        ({"method": "magic"}, ("method", "magic")),
        ({"views": []}, ("views",)),
        ({"query": "proxy", "tpp": False}, ("query",)),
        ({"crop_scale": [0.5, 0.2]}, ("crop_scale",)),
        ({"epochs": 4, "warmup_epochs": 4}, ("warmup_epochs",)),
        ({"epochs": 4, "warmup_epochs": 0, "validate_every": 3}, ("validate_every",)),
    ],
)
def test_a_wrong_key_or_value_is_named(keys: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        load(None, keys)
    assert "\n" not in str(refusal.value)
    for part in parts:
        assert part in str(refusal.value)


@given(key=st.text(max_size=20), value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10))
def test_any_other_key_is_refused_in_one_line(key: str, value: object) -> None:
    if key not in Recipe.model_fields:
        with pytest.raises(UserError, match="unknown key"):
            load(None, {key: value})


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a\n- b", "mapping"), ("lr: [", "not valid YAML"), ("!!python/name:os.system", "not valid YAML")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=part):
        load(file, {})


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'imagenette'"):
        load("imagenete", {})
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml", {})


def test_shipped_recipes_name_no_key_twice() -> None:
    for name in names():
        text = (Path(load.__globals__["__file__"]).parent / f"{name}.yaml").read_text()
        keys = [line.split(":")[0] for line in text.splitlines() if line and line[0].isalpha()]
        assert sorted(keys) == sorted(yaml.safe_load(text))
