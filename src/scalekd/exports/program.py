"""Export to torch's exported programs, `.pt2`: the model as a graph, independent of its code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from scalekd.errors import UserError, first_line
from scalekd.exports.onnx import example
from scalekd.models import Classifier
from scalekd.models.weights import CARD_KEY, Card

CARD_FILE = f"{CARD_KEY}.json"


def export_program(classifier: Classifier, path: str | Path, card: Card) -> None:
    """Export a program from RGB images in [0, 1] `[batch, 3, side, side]` to logits, with any batch size.

    Raises:
        UserError: If torch cannot export the model.
    """
    path = Path(path)
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(classifier.eval(), (example(classifier),), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UserError(f"format: {classifier.name} cannot be exported by torch: {first_line(error)}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path, extra_files={CARD_FILE: json.dumps(card.as_dict())})


class ProgramClassifier:
    """A `.pt2` file written by `export_program`, run by torch."""

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(path).module()

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` of the model's size -> logits `[B, K]`."""
        logits: Tensor = self._module(images)
        return logits
