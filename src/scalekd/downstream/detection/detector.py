"""The detector of a run: built, written and read again."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import MaskRCNN

from scalekd.downstream.backbone import Backbone, card_of, save_whole
from scalekd.downstream.detection.model import build_detector
from scalekd.downstream.detection.schema import Detection
from scalekd.models.weights import load_weights, read_weights
from scalekd.recipes import load_as
from scalekd.training import RunFolder

_HEAD = "maskrcnn"


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


def save_detector(path: Path, detector: MaskRCNN, recipe: Detection, classes: tuple[str, ...]) -> str:
    """Write the whole detector; gives the SHA-256 of the file."""
    backbone: Backbone = detector.backbone.backbone
    return save_whole(path, detector, backbone, head=_HEAD, resolution=recipe.sizes[-1], classes=classes)


def load_detector(path: str | Path, recipe: Detection | None = None) -> tuple[MaskRCNN, tuple[str, ...]]:
    """The detector that a run left, in eval mode, and the names of its classes: label 1 is the first.

    It takes a list of images (RGB in [0, 1], each `[3, h, w]`) and gives `boxes`, `labels`, `scores`, `masks` of each.

    Args:
        path: The run's folder.
        recipe: Its settings, of which image sizes may be others; by default those that it has kept.

    Raises:
        UserError: If there is no such run, or it has left no detector yet.
    """
    folder = RunFolder(Path(path))
    recipe = recipe or load_as(Detection, folder.stored_keys(), {})
    state, card = read_weights(folder.detector)
    card = card_of(folder.detector, card, _HEAD)
    detector = build(recipe, Backbone.from_card(card), card.num_classes)
    load_weights(detector, state, folder.detector)
    return detector.eval(), card.classes
