"""Builds a model with its weights from a specification."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import nn

from scalekd.models.key_matching import fit_keys, load_fitted, stored_resolution
from scalekd.models.resolve import ModelSpec
from scalekd.models.sources import create


class BuiltModel(NamedTuple):
    """A model as it was built.

    Attributes:
        module: The model.
        spec: The specification, with the head and resolution of a file without a card corrected.
        notes: Changes made to the file's keys and head, one line each.
    """

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Width of the head; 0 if it is unknown."""
        return int(getattr(self.module, "num_classes", self.spec.head_width or 0))


def build(spec: ModelSpec, *, fresh_head: bool = False) -> BuiltModel:
    """Build a model and load its weights.

    Args:
        spec: From `resolve`.
        fresh_head: Whether the model keeps its random head if the file's has another width or is missing.

    Raises:
        UserError: If it cannot be built, or the weights do not fit.
    """
    module, state = _create(spec), spec.state
    if state is None:
        return BuiltModel(module, spec)
    fitted = fit_keys(module, state)
    if spec.card is None:  # head and position embeddings show what a card would state
        width = spec.head_width if spec.head_given else fitted.head_width
        side = spec.resolution or stored_resolution(module, fitted.plain)
        if (width, side) != (getattr(module, "num_classes", spec.head_width), spec.resolution):
            spec = replace(spec, head_width=width, resolution=side)
            module = _create(spec)
            fitted = fit_keys(module, state)
    notes = load_fitted(module, fitted, state, str(spec.weights), fresh_head=fresh_head)
    return BuiltModel(module, spec, notes)


def _create(spec: ModelSpec) -> nn.Module:
    width = {} if spec.head_width is None else {"num_classes": spec.head_width}
    return create(spec.source, pretrained=spec.pretrained, model_args=spec.model_args | width)
