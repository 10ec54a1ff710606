"""The detection task: losses, validation and saving, as the training loop calls them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models.detection import MaskRCNN

from scalekd.data import CorruptImages
from scalekd.engine.context import RunContext
from scalekd.engine.learner import Learner
from scalekd.errors import UserError
from scalekd.models.failure import naming_model
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.data import DetectionBatch
from scalekd.tasks.detection.detector import save_detector
from scalekd.tasks.detection.evaluation import AveragePrecision
from scalekd.tasks.detection.measuring import Tally, scaled
from scalekd.tasks.detection.model import detector_name
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.task import TransferTask

_ONE = {"boxes": "box", "masks": "mask"}


class DetectionTask(TransferTask):
    """Trains a detector and measures it with COCO's protocol.

    Args:
        context: The run's surroundings.
        recipe: The run's settings.
        learner: The detector in training.
        val: The validation split.

    Attributes:
        figures: Figures of the last validation, of `boxes` and, if the detector predicts them, `masks`; empty before
            the first validation.
        seen: Number of images that the last validation could read.
    """

    name = "detection"

    def __init__(self, context: RunContext, recipe: Detection, learner: Learner, val: CocoSplit) -> None:
        super().__init__(learner, CorruptImages(recipe.max_corrupt, context.report))
        self.figures: dict[str, AveragePrecision] = {}
        self.seen = 0
        self._context, self._recipe, self._val = context, recipe, val
        self._masks, self._named = isinstance(learner.model, MaskRCNN), detector_name(self.final)
        self._tally = Tally(val, masks=self._masks)

    def loss_terms(self, model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
        if not batch.images:
            raise UserError("data: no image of a batch can be read; max_corrupt says how many may be unreadable")
        with naming_model(self.name, self._named, (len(batch.images), *batch.images[0].shape), "be trained on"):
            return detection_losses(model, batch)

    def start_validation(self) -> None:
        self._tally = Tally(self._val, masks=self._masks)

    def validate(self, batch: DetectionBatch, step: int) -> None:
        self._tally.add(self.final, batch)

    def end_validation(self, step: int) -> None:
        self._tally.share(self._context.processes)
        self.seen, self.figures = len(self._tally.seen), self._tally.figures()
        figures = {
            f"val/{_ONE[kind]}_{name}": value
            for kind, measured in self.figures.items()
            for name, value in measured.figures.items()
            if value is not None
        }
        self.learner.log_validation(figures, step)

    def describe(self) -> str:
        return "  ".join(
            f"{_ONE[kind]} AP {measured.figures['AP'] or 0:.2f} (50: {measured.figures['AP50'] or 0:.2f})"
            for kind, measured in self.figures.items()
        )

    def checkpoint_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "figures": {kind: asdict(measured) for kind, measured in self.figures.items()}}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        self.figures = {kind: AveragePrecision(**measured) for kind, measured in state["figures"].items()}

    def save(self, *, measured: bool) -> None:
        if self._context.processes.first:
            save_detector(self._context.folder.detector, self.final, self._recipe, self._val.classes)


def detection_losses(model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
    """Compute the losses of a detector on a batch."""
    losses: dict[str, Tensor] = model(scaled(batch.images), batch.targets)
    return {name.removeprefix("loss_"): value for name, value in losses.items()}


def step_schedule(recipe: Detection, steps_per_epoch: int, optimizer: Optimizer) -> Scheduler:
    """Build the learning-rate schedule by optimiser steps: linear warm-up, then division by ten at each milestone."""
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[epoch * steps_per_epoch + 1 for epoch in recipe.milestones],  # timm drops one step early
        decay_rate=0.1,
        warmup_t=recipe.warmup_steps,
        warmup_lr_init=recipe.warmup_lr,
        t_in_epochs=False,
    )
