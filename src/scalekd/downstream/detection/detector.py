"""The detector of a run: built, written and read again."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import MaskRCNN

from scalekd.downstream.backbone import Backbone
from scalekd.downstream.detection.model import build_detector
from scalekd.downstream.detection.schema import Detection
from scalekd.errors import UserError
from scalekd.models.weights import Card, load_weights, read_weights, save_weights
from scalekd.recipes import load_as
from scalekd.training import RunFolder

_PREFIX = "maskrcnn:"


def build(recipe: Detection, backbone: Backbone, num_classes: int) -> MaskRCNN:
    """The detector of a recipe; what is not the backbone's has random weights from torch's generator."""
    return build_detector(
        backbone,
        num_classes,
        sizes=recipe.sizes,
        max_size=recipe.max_size,
        frozen_norm=recipe.frozen_norm,
        frozen_stem=recipe.frozen_stem,
        proposals=recipe.proposals,
        width=recipe.width,
        hidden=recipe.hidden,
    )


def save_detector(folder: RunFolder, detector: MaskRCNN, recipe: Detection, classes: tuple[str, ...]) -> str:
    """Write the whole detector, with a card that says which backbone it has.

    Returns:
        The SHA-256 of the file.
    """
    backbone: Backbone = detector.backbone.backbone
    card = Card(
        architecture=f"{_PREFIX}{backbone.name}",
        num_classes=len(classes),
        resolution=recipe.sizes[-1],
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
        classes=classes,
    )
    return save_weights(folder.detector, detector.state_dict(), card)


def load_detector(path: str | Path) -> tuple[MaskRCNN, tuple[str, ...]]:
    """The detector that a run left, in eval mode, and the names of its classes: label 1 is the first.

    It takes a list of images (RGB in [0, 1], each `[3, h, w]`) and gives `boxes`, `labels`, `scores`, `masks` of each.

    Raises:
        UserError: If there is no such run, or it has left no detector yet.
    """
    folder = RunFolder(Path(path))
    recipe = load_as(Detection, folder.stored_keys(), {})
    state, card = read_weights(folder.detector)
    if card is None or not card.architecture.startswith(_PREFIX):
        raise UserError(f"weights: {folder.detector} is no detector of scalekd's")
    backbone = Backbone(card.architecture.removeprefix(_PREFIX), pretrained=False, **recipe.backbone_args)
    detector = build(recipe, backbone, card.num_classes)
    load_weights(detector, state, folder.detector)
    return detector.eval(), card.classes
