"""YAML recipes and the typed schema that validates them."""

from scalekd.recipes.data_keys import AS_USUAL, DataKeys, ListKeys, SourceKeys
from scalekd.recipes.load import (
    DATA_KEYS,
    dump,
    follows_images,
    load,
    load_as,
    load_resumed,
    names,
    over_stored,
    resolved,
    transfer_names,
)
from scalekd.recipes.schema import GROUPS, OptimisationKeys, OptimizerKeys, Recipe

__all__ = [
    "AS_USUAL",
    "DATA_KEYS",
    "GROUPS",
    "DataKeys",
    "ListKeys",
    "OptimisationKeys",
    "OptimizerKeys",
    "Recipe",
    "SourceKeys",
    "dump",
    "follows_images",
    "load",
    "load_as",
    "load_resumed",
    "names",
    "over_stored",
    "resolved",
    "transfer_names",
]
