"""The detector of a run: built, written and read again."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN

from scalekd.data import seeded
from scalekd.hardware import pick_compute
from scalekd.models.failure import naming_model
from scalekd.models.fitting import load_weights
from scalekd.models.weights import read_weights
from scalekd.recipes import load_as
from scalekd.runs.folder import RunFolder
from scalekd.tasks.detection.model import build_detector
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.backbone import Backbone, card_of, save_whole

_MASKS, _BOXES = "maskrcnn", "fasterrcnn"  # what a file of weights says of its detector


def build(recipe: Detection, backbone: Backbone, num_classes: int, *, masks: bool) -> FasterRCNN:
    """The detector of a recipe: Mask R-CNN, or Faster R-CNN without masks.

    What is not the backbone's has random weights from torch's generator.
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
    """Write the whole detector; gives the SHA-256 of the file."""
    backbone: Backbone = detector.backbone.backbone
    head = _MASKS if isinstance(detector, MaskRCNN) else _BOXES
    return save_whole(path, detector, backbone, head=head, resolution=recipe.sizes[-1], classes=classes)


def load_detector(path: str | Path, recipe: Detection | None = None) -> tuple[FasterRCNN, tuple[str, ...]]:
    """The detector that a run left, in eval mode, and the names of its classes: label 1 is the first.

    It takes a list of images (RGB in [0, 1], each `[3, h, w]`) and gives `boxes`, `labels` and `scores` of each,
    and `masks` where the run has learned them.

    Args:
        path: The run's folder.
        recipe: Its settings, of which image sizes may be others; by default those that it has kept.

    Raises:
        UserError: If there is no such run, or it has left no detector yet.
    """
    folder = RunFolder(Path(path))
    recipe = recipe or load_as(Detection, folder.stored_keys(), {})
    state, card = read_weights(folder.detector)
    masks = card is None or not card.architecture.startswith(f"{_BOXES}:")
    card = card_of(folder.detector, card, _MASKS if masks else _BOXES)
    detector = build(recipe, Backbone.from_card(card), card.num_classes, masks=masks)
    load_weights(detector, state, folder.detector)
    return detector.eval(), card.classes


def try_training(detector: FasterRCNN, recipe: Detection, backbone: str) -> None:
    """Train a copy of a detector for one step on noise: what cannot be trained is refused before the run starts.

    Args:
        detector: What will be trained; it and the random state are left as they are.
        recipe: Its settings.
        backbone: The backbone's name.

    Raises:
        ModelError: If the step fails; names backbone and images.
    """
    side, count = min(recipe.sizes), min(recipe.micro_batch or recipe.batch, 2)  # two are enough for a batch norm
    compute = pick_compute(recipe)
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
