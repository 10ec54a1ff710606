"""The Lightning module around a detector."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from scalekd.data import CorruptImages
from scalekd.downstream.detection.coco import CocoSplit
from scalekd.downstream.detection.data import DetectionBatch
from scalekd.downstream.detection.evaluation import AveragePrecision
from scalekd.downstream.detection.schema import Detection
from scalekd.downstream.detection.testing import Tally, scaled
from scalekd.downstream.module import TransferModule
from scalekd.errors import UserError


class DetectionModule(TransferModule):
    """Trains a detector, and measures it by COCO's protocol.

    Args:
        recipe: The run's settings.
        detector: From `build_detector`.
        val: What it is measured on.
        steps_per_epoch: Optimiser steps an epoch.
        corrupt: Counter of unreadable images.

    Attributes:
        boxes, masks: Figures of the last validation; None before the first.
        seen: Images that it could read.
    """

    def __init__(
        self, recipe: Detection, detector: MaskRCNN, val: CocoSplit, *, steps_per_epoch: int, corrupt: CorruptImages
    ) -> None:
        super().__init__(
            detector,
            recipe,
            steps=recipe.epochs * steps_per_epoch,
            interval=recipe.validate_every * steps_per_epoch,
            corrupt=corrupt,
        )
        self.recipe, self.val, self.steps_per_epoch = recipe, val, steps_per_epoch
        self.boxes: AveragePrecision | None = None
        self.masks: AveragePrecision | None = None
        self.seen = 0
        self._tally = Tally(val)

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        self.corrupt.add(batch.corrupt)
        if not batch.images:
            raise UserError("data: no image of a batch can be read; max_corrupt says how many may be unreadable")
        losses: dict[str, Tensor] = self.model(scaled(batch.images), batch.targets)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(self.val)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.corrupt.add(batch.corrupt)
        self._tally.add(self.final, batch)

    def on_validation_epoch_end(self) -> None:
        self.seen = len(self._tally.seen)
        self.boxes, self.masks = self._tally.figures()
        figures = {
            f"val/{kind}_{name}": value
            for kind, measured in (("box", self.boxes), ("mask", self.masks))
            for name, value in measured.figures.items()
            if value is not None
        }
        self.log_figures(figures, self.global_step)

    def describe(self) -> str:
        assert self.boxes is not None
        assert self.masks is not None
        figures = (
            f"{kind} AP {measured.figures['AP'] or 0:.2f} (50: {measured.figures['AP50'] or 0:.2f})"
            for kind, measured in (("box", self.boxes), ("mask", self.masks))
        )
        return "  ".join((f"epoch {self.global_step // self.steps_per_epoch}/{self.recipe.epochs}", *figures))

    @property
    def measured(self) -> dict[str, Any] | None:
        if self.boxes is None or self.masks is None:
            return None
        return {"boxes": asdict(self.boxes), "masks": asdict(self.masks), "seen": self.seen}

    @measured.setter
    def measured(self, values: dict[str, Any] | None) -> None:
        self.boxes, self.masks = (
            None if values is None else AveragePrecision(**values[kind]) for kind in ("boxes", "masks")
        )
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
