"""YAML recipes and the typed schema that validates them."""

from scalekd.recipes.load import dump, load, names, resolved
from scalekd.recipes.schema import GROUPS, DataKeys, Keys, Recipe

__all__ = ["GROUPS", "DataKeys", "Keys", "Recipe", "dump", "load", "names", "resolved"]
