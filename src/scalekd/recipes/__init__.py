"""YAML recipes and the typed schema that validates them."""

from scalekd.recipes.load import dump, load, load_as, names, resolved, transfer_names
from scalekd.recipes.schema import AS_USUAL, GROUPS, DataKeys, ListKeys, OptimisationKeys, OptimizerKeys, Recipe

__all__ = [
    "AS_USUAL",
    "GROUPS",
    "DataKeys",
    "ListKeys",
    "OptimisationKeys",
    "OptimizerKeys",
    "Recipe",
    "dump",
    "load",
    "load_as",
    "names",
    "resolved",
    "transfer_names",
]
