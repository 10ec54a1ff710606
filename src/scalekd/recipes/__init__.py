"""YAML recipes and the typed schema that validates them."""

from scalekd.recipes.load import (
    DATA_KEYS,
    dump,
    follows_images,
    load,
    load_as,
    names,
    over_stored,
    resolved,
    transfer_names,
)
from scalekd.recipes.schema import (
    AS_USUAL,
    GROUPS,
    DataKeys,
    ListKeys,
    OptimisationKeys,
    OptimizerKeys,
    Recipe,
    SourceKeys,
)

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
    "names",
    "over_stored",
    "resolved",
    "transfer_names",
]
