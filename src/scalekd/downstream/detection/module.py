"""The Lightning module around a detector."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN

from scalekd.data import CorruptImages
from scalekd.downstream.detection.coco import CocoSplit
from scalekd.downstream.detection.data import DetectionBatch
from scalekd.downstream.detection.evaluation import AveragePrecision
from scalekd.downstream.detection.schema import Detection
from scalekd.downstream.detection.testing import Tally, scaled
from scalekd.downstream.module import TransferModule
from scalekd.errors import UserError
from scalekd.models.failure import naming_model

_ONE = {"boxes": "box", "masks": "mask"}


class DetectionModule(TransferModule):
    """Trains a detector, and measures it by COCO's protocol.

    Args:
        recipe: The run's settings.
        detector: From `build_detector`.
        val: What it is measured on.
        steps_per_epoch: Optimiser steps an epoch.
        corrupt: Counter of unreadable images.

    Attributes:
        figures: Those of the last validation, of `boxes` and, where the detector finds them, of `masks`; empty before.
        seen: Images that it could read.
    """

    def __init__(
        self, recipe: Detection, detector: FasterRCNN, val: CocoSplit, *, steps_per_epoch: int, corrupt: CorruptImages
    ) -> None:
        super().__init__(
            detector,
            recipe,
            steps=recipe.epochs * steps_per_epoch,
            interval=recipe.validate_every * steps_per_epoch,
            corrupt=corrupt,
        )
        self.recipe, self.val, self.steps_per_epoch = recipe, val, steps_per_epoch
        self.figures: dict[str, AveragePrecision] = {}
        self.seen = 0
        self._masks, self._backbone = isinstance(detector, MaskRCNN), detector.backbone.backbone.name
        self._tally = Tally(val, masks=self._masks)

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        self.corrupt.add(batch.corrupt)
        if not batch.images:
            raise UserError("data: no image of a batch can be read; max_corrupt says how many may be unreadable")
        shape = (len(batch.images), *batch.images[0].shape)
        with naming_model("backbone", self._backbone, shape, "be trained on"):
            losses: dict[str, Tensor] = self.model(scaled(batch.images), batch.targets)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(self.val, masks=self._masks)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.corrupt.add(batch.corrupt)
        self._tally.add(self.final, batch)

    def on_validation_epoch_end(self) -> None:
        self.seen = len(self._tally.seen)
        self.figures = self._tally.figures()
        figures = {
            f"val/{_ONE[kind]}_{name}": value
            for kind, measured in self.figures.items()
            for name, value in measured.figures.items()
            if value is not None
        }
        self.log_figures(figures, self.global_step)

    def describe(self) -> str:
        figures = (
            f"{_ONE[kind]} AP {measured.figures['AP'] or 0:.2f} (50: {measured.figures['AP50'] or 0:.2f})"
            for kind, measured in self.figures.items()
        )
        return "  ".join((f"epoch {self.global_step // self.steps_per_epoch}/{self.recipe.epochs}", *figures))

    @property
    def measured(self) -> dict[str, Any] | None:
        if not self.figures:
            return None
        return {kind: asdict(measured) for kind, measured in self.figures.items()} | {"seen": self.seen}

    @measured.setter
    def measured(self, values: dict[str, Any] | None) -> None:
        self.figures = {
            kind: AveragePrecision(**values[kind]) for kind in _ONE if values is not None and kind in values
        }
        self.seen = 0 if values is None else values["seen"]

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        recipe = self.recipe
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[epoch * self.steps_per_epoch + 1 for epoch in recipe.milestones],  # timm drops one step before
            decay_rate=0.1,
            warmup_t=recipe.warmup_steps,
            warmup_lr_init=recipe.warmup_lr,
            t_in_epochs=False,
        )
