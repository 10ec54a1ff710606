"""Builds, saves and loads the detector of a run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN

from scalekd.data import seeded
from scalekd.hardware import Compute
from scalekd.models.failure import naming_model
from scalekd.models.fitting import load_weights
from scalekd.models.weights import read_weights
from scalekd.recipes import load_as
from scalekd.runs.folder import RunFolder
from scalekd.tasks.detection.model import build_detector
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.backbone import Backbone, card_of, save_whole

_MASKS, _BOXES = "maskrcnn", "fasterrcnn"  # the detector's name in a weights file


def build(recipe: Detection, backbone: Backbone, num_classes: int, *, masks: bool) -> FasterRCNN:
    """Build the detector of a recipe: Mask R-CNN, or Faster R-CNN without masks.

    All weights outside the backbone are random, drawn from torch's global generator.
    """
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
        masks=masks,
    )


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
    detector = build(recipe, Backbone.from_card(card), card.num_classes, masks=masks)
    load_weights(detector, state, folder.detector)
    return detector.eval(), card.classes


def try_training(detector: FasterRCNN, recipe: Detection, backbone: str, compute: Compute) -> None:
    """Train a copy of a detector for one step on noise, so that what cannot be trained fails before a run starts.

    Args:
        detector: The detector. It and the random state are not changed.
        recipe: The run's settings.
        backbone: The backbone's name.
        compute: Where and in which number format the detector will run.

    Raises:
        ModelError: If the step fails; names the backbone and the images' shape.
    """
    side, count = min(recipe.sizes), min(recipe.micro_batch or recipe.batch, 2)  # batch norm needs two
    device = compute.device
    target = {
        "boxes": torch.tensor([[0.0, 0.0, side / 2, side / 2]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "masked": torch.ones(1, dtype=torch.bool),
    }
    with seeded(recipe.seed), naming_model("backbone", backbone, (count, 3, side, side), "be trained on"):
        trial = copy.deepcopy(detector).to(device).train()
        targets = [{name: value.to(device) for name, value in target.items()} for _ in range(count)]
        with compute.autocast():
            losses = trial(list(torch.rand(count, 3, side, side, device=device)), targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
