"""Saves and loads the detector of a run."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import FasterRCNN, MaskRCNN

from scalekd.models.key_matching import load_weights
from scalekd.models.weights import read_weights
from scalekd.recipes import load_as
from scalekd.runs.folder import RunFolder
from scalekd.tasks.detection.model import build_detector
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.backbone import Backbone, card_of, save_whole

_MASKS, _BOXES = "maskrcnn", "fasterrcnn"  # the detector's name in a weights file


def save_detector(path: Path, detector: FasterRCNN, recipe: Detection, classes: tuple[str, ...]) -> str:
    """Save the whole detector and return the SHA-256 of the file."""
    backbone: Backbone = detector.backbone.backbone
    head = _MASKS if isinstance(detector, MaskRCNN) else _BOXES
    return save_whole(path, detector, backbone, head=head, resolution=recipe.sizes[-1], classes=classes)


def load_detector(path: str | Path, recipe: Detection | None = None) -> tuple[FasterRCNN, tuple[str, ...]]:
    """Load the detector of a run in eval mode, and the names of its classes, label 1 first.

    The detector takes a list of images (RGB in [0, 1], each `[3, h, w]`) and returns `boxes`, `labels` and `scores`
    for each, and `masks` if the run trained them.

    Args:
        path: The run folder.
        recipe: The run's settings, possibly with other image sizes. Default: the stored ones.

    Raises:
        UserError: If there is no such run, or it has not saved a detector yet.
    """
    folder = RunFolder(Path(path))
    recipe = recipe or load_as(Detection, folder.stored_keys(), {})
    state, card = read_weights(folder.detector)
    masks = card is None or not card.architecture.startswith(f"{_BOXES}:")
    card = card_of(folder.detector, card, _MASKS if masks else _BOXES)
    detector = build_detector(recipe, Backbone.from_card(card), card.num_classes, masks=masks)
    load_weights(detector, state, folder.detector)
    return detector.eval(), card.classes
