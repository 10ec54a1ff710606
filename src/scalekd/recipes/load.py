"""Recipes on disk: YAML files, those shipped by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import UserError, did_you_mean
from scalekd.recipes.schema import Recipe, validate


def names() -> list[str]:
    """Names of the shipped recipes."""
    files = (file.name for file in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load(recipe: str | Path | None, overrides: dict[str, Any]) -> Recipe:
    """Read a recipe and lay the overrides on top.

    Args:
        recipe: A shipped recipe's name or a YAML file; None for the defaults.
        overrides: Keys that win over the file's.

    Raises:
        UserError: If there is no such recipe, the file is no YAML mapping, or a key or value is wrong.
    """
    keys: dict[str, Any] = {} if recipe is None else _read(str(recipe))
    source = "recipe" if recipe is None else f"recipe {recipe}"
    return validate(keys | overrides, source)


def _read(recipe: str) -> dict[str, Any]:
    shipped = resources.files(__package__) / f"{recipe}.yaml"
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"recipe: no such file: {recipe}")
        text = path.read_text(encoding="utf-8")
    elif shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        raise UserError(
            f"recipe: no recipe {recipe!r}{did_you_mean(recipe, names())}; shipped are {', '.join(names())}, "
            "anything else must be a .yaml file"
        )
    try:
        keys = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"recipe {recipe}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(keys, dict):
        raise UserError(f"recipe {recipe}: must be a mapping of keys, not a {type(keys).__name__}")
    return keys


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key spelt out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
