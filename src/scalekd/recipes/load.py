"""Reads recipes: shipped ones by name, or YAML files, each of which may build on another recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import UserError, did_you_mean
from scalekd.keys import Keys
from scalekd.methods.registry import LEAN, has_key, methods_with
from scalekd.recipes.data_keys import ListKeys, SourceKeys
from scalekd.recipes.own_images import CHOSEN, choose_sizes
from scalekd.recipes.schema import K, Recipe, validate
from scalekd.recipes.text import read_keys

BASE, SIZES = "base", "sized_by"  # keys of recipe files, not of runs
BY_IMAGES = "images"
DATA_KEYS = ("data", *SourceKeys.model_fields)  # where the images of both splits are
_RATES = ("lr", "min_lr", "warmup_lr")
_STRATEGIES = "strategies/"
_TASKS = ("segmentation/", "detection/")  # recipes of `transfer`, which have different keys


def names() -> list[str]:
    """Return the names of the shipped recipes of `distill`, without the strategies that they build on."""
    return [name for name in _shipped() if not name.startswith((_STRATEGIES, *_TASKS))]


def transfer_names() -> list[str]:
    """Return the names of the shipped recipes of `transfer`, each prefixed with its task."""
    return [name for name in _shipped() if name.startswith(_TASKS)]


def load(
    recipe: str | Path | Mapping[str, Any] | None,
    overrides: dict[str, Any],
    say: Callable[[str], object] = lambda _line: None,
    count: Callable[[Recipe], int] | None = None,
) -> Recipe:
    """Read a recipe of `distill` and apply the overrides; see `load_as`.

    Args:
        recipe: See `load_as`.
        overrides: See `load_as`.
        say: See `load_as`.
        count: Counts the training images of a recipe with `sized_by: images`, whose epochs, batch and rates follow from
            them; None to leave these as they are.
    """
    keys, _ = _keys(recipe)
    if count is None or not follows_images(recipe):
        return load_as(Recipe, recipe, overrides, say)
    given = load_as(Recipe, recipe, overrides)
    images = count(given)
    chosen = choose_sizes(images, given, keys.keys() | overrides.keys())
    if chosen:
        say(f"sizes     for {images} training images: {', '.join(f'{key} {value:g}' for key, value in chosen.items())}")
    return load_as(Recipe, recipe, overrides | chosen, say)


def load_resumed(
    recipe: str | Path | None,
    stored: dict[str, Any],
    overrides: dict[str, Any],
    say: Callable[[str], object] = lambda _line: None,
) -> Recipe:
    """Read the settings of a run that was started before; sizes that were chosen for its images are kept.

    Args:
        recipe: The recipe as the user passes it again; None for the stored keys.
        stored: The keys that the run stored.
        overrides: See `load_as`.
        say: See `load_as`.
    """
    if recipe is None:
        return load(stored, overrides, say)
    sizes = {key: stored[key] for key in CHOSEN if key in stored} if follows_images(recipe) else {}
    return load(recipe, sizes | overrides, say)


def load_as(
    schema: type[K],
    recipe: str | Path | Mapping[str, Any] | None,
    overrides: dict[str, Any],
    say: Callable[[str], object] = lambda _line: None,
) -> K:
    """Read a recipe and apply the overrides.

    A recipe may set `base` to another recipe, whose keys it inherits unless it sets them itself, and `sized_by` to
    `images` (see `load`). Keys that the chosen
    method does not have are dropped if they are inherited, and are an error if they are set together with that method.
    If the overrides change `batch`, the recipe's learning rates are scaled linearly unless `lr` is overridden too, and
    its `micro_batch` is dropped.

    Args:
        schema: The kind of recipe.
        recipe: Name of a shipped recipe, a YAML file, or keys; None for the defaults.
        overrides: Keys that take precedence over the recipe's.
        say: Called with a line for each derived value.

    Raises:
        UserError: If there is no such recipe, the file is not a YAML mapping, or a key or value is wrong.
    """
    keys, source = _keys(recipe)
    if schema is Recipe and keys.pop(SIZES, BY_IMAGES) != BY_IMAGES:
        raise UserError(f"{source}: {SIZES} must be {BY_IMAGES}, or be left out")
    laid = _lay(keys, overrides, source) | _scale_rates(keys, overrides, say)
    another = "batch" in overrides and str(overrides["batch"]) != str(keys.get("batch"))
    if keys.get("micro_batch") and another and "micro_batch" not in overrides:
        del laid["micro_batch"]
        say("micro_batch: the recipe's is for its own batch and ignored; as many images as fit are taken at once")
    return validate(schema, laid, source)


def follows_images(recipe: str | Path | Mapping[str, Any] | None) -> bool:
    """Whether epochs, batch and rates of a recipe follow from the number of training images, if they are not set."""
    return SIZES in _keys(recipe)[0]


def _keys(recipe: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the keys of a recipe with those of its bases, and what to call it in messages."""
    if recipe is None or isinstance(recipe, Mapping):
        return dict(recipe or {}), "recipe"
    return _resolve(str(recipe), ()), f"recipe {recipe}"


def _lay(below: dict[str, Any], above: dict[str, Any], source: str) -> dict[str, Any]:
    """Merge keys; `above` takes precedence over `below`. Inherited keys that the method does not have are dropped.

    Raises:
        UserError: If `above` sets a key that the resulting method does not have.
    """
    keys = below | above
    method = keys.get("method", Recipe.model_fields["method"].default)
    foreign = [key for key in above if not has_key(method, key)]
    if foreign:
        key = foreign[0]
        raise UserError(f"{source}: {key} is no key of method {method} (but of {methods_with(key)}); leave it out")
    if above.get("lean") is True:  # it also replaces keys of the recipe below, such as that of a finished run
        keys = below | LEAN | above
    elif above.get("lean") is False and below.get("lean"):
        keys = below | {key: Recipe.model_fields[key].default for key in LEAN} | above
    return {key: value for key, value in keys.items() if has_key(method, key)}


def _scale_rates(keys: dict[str, Any], overrides: dict[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    """Scale the recipe's learning rates if the overrides change its batch; return the scaled rates."""
    try:
        old, new = int(keys["batch"]), int(overrides["batch"])
        if "lr" in overrides or new == old or new < 1:
            return {}
        scaled = {rate: float(keys[rate]) * new / old for rate in _RATES if rate in keys and rate not in overrides}
    except (KeyError, TypeError, ValueError, ArithmeticError):  # nothing to scale, or an error that validation reports
        return {}
    if scaled:
        rates = ", ".join(f"{rate} {float(keys[rate]):g} -> {value:g}" for rate, value in scaled.items())
        say(f"batch {new} instead of the recipe's {old}: learning rates scaled linearly ({rates})")
    return scaled


def _resolve(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Read the keys of a recipe and merge them with those of its base."""
    keys, place = _read(recipe), os.path.realpath(recipe)
    if place in seen:
        raise UserError(f"recipe {recipe}: is its own base ({' -> '.join((*seen, place))})")
    base = keys.pop(BASE, None)
    if base is None:
        return _lay({}, keys, f"recipe {recipe}")
    if not isinstance(base, str):
        raise UserError(f"recipe {recipe}: {BASE} must name a recipe or a .yaml file (got {base!r})")
    if base.endswith((".yaml", ".yml")):
        base = str(Path(recipe).parent / base)
    return _lay(_resolve(base, (*seen, place)), keys, f"recipe {recipe}")


def _shipped() -> dict[str, Any]:
    """Return every shipped recipe file by name, including strategies."""
    root = resources.files(__package__)
    found = {
        f"{folder}{file.name.removesuffix('.yaml')}": file
        for folder, place in [("", root)] + [(f"{p.name}/", p) for p in root.iterdir() if p.is_dir()]
        for file in place.iterdir()
        if file.name.endswith(".yaml")
    }
    return dict(sorted(found.items()))


def _read(recipe: str) -> dict[str, Any]:
    path, shipped = Path(recipe), _shipped()
    if path.suffix in (".yaml", ".yml"):
        if not os.path.isfile(path):  # Path.is_file raises if the name is too long
            raise UserError(f"recipe: no such file: {recipe}")
        return read_keys(path, f"recipe {recipe}")
    if recipe not in shipped:
        raise UserError(
            f"recipe: no recipe {recipe!r}{did_you_mean(recipe, [*names(), *transfer_names()])} "
            "(`scalekd recipes` lists those shipped); anything else must be a .yaml file"
        )
    return read_keys(shipped[recipe], f"recipe {recipe}")


def over_stored(flags: Mapping[str, Any], stored: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Flags on top of those keys of a run that a command takes over, except for what belongs to the run's own data."""
    # Whether an image has several labels belongs to the model as well.
    foreign = set(ListKeys.model_fields) - {"multi_label"} if "data" in flags else set()
    foreign |= {"val_share"} if {"data", "val_split"} & flags.keys() else set()  # it divides the run's own images
    return {name: stored[name] for name in names if name in stored and name not in foreign} | dict(flags)


def resolved(recipe: Keys) -> dict[str, Any]:
    """Return all keys of a recipe as plain values, without those that its method, if any, does not have."""
    method = getattr(recipe, "method", None)
    return {key: value for key, value in recipe.model_dump(mode="json").items() if has_key(method, key)}


def dump(recipe: Keys) -> str:
    """Return the resolved recipe as YAML, with every key of its method."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False)
