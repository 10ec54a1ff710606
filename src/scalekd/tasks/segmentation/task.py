"""The segmentation task: losses, validation and saving, as the training loop calls them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from timm.scheduler import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekd.data import CorruptImages
from scalekd.engine.context import RunContext
from scalekd.engine.learner import Learner
from scalekd.errors import UserError
from scalekd.models.failure import naming_model
from scalekd.tasks.segmentation.data import SegmentationBatch
from scalekd.tasks.segmentation.measuring import IntersectionOverUnion, Tally
from scalekd.tasks.segmentation.model import Segmenter
from scalekd.tasks.segmentation.schema import IGNORED, Segmentation
from scalekd.tasks.transfer.backbone import save_whole
from scalekd.tasks.transfer.task import TransferTask

HEAD = "upernet"


class SegmentationTask(TransferTask):
    """Trains a segmenter and measures it.

    Args:
        context: The run's surroundings.
        recipe: The run's settings.
        learner: The segmenter in training.

    Attributes:
        figures: Figures of the last validation; None before the first.
    """

    name = "segmentation"

    def __init__(self, context: RunContext, recipe: Segmentation, learner: Learner) -> None:
        super().__init__(learner, CorruptImages(recipe.max_corrupt, context.report))
        self.figures: IntersectionOverUnion | None = None
        self._context, self._recipe = context, recipe
        self._tally = self._new_tally()

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter that is measured and saved."""
        assert isinstance(self.final, Segmenter)
        return self.final

    def loss_terms(self, model: nn.Module, batch: SegmentationBatch) -> dict[str, Tensor]:
        batch.refuse_wrong()
        if not batch.images.numel():
            raise UserError("data: no image of a batch can be read; max_corrupt says how many may be unreadable")
        with naming_model(self.name, self.segmenter.name, batch.images.shape, "be trained on"):
            return segmentation_losses(model, batch, auxiliary_weight=self._recipe.auxiliary_weight)

    def _new_tally(self) -> Tally:
        return Tally(self._recipe, next(self.segmenter.parameters()).device)

    def start_validation(self) -> None:
        self._tally = self._new_tally()

    def validate(self, batch: SegmentationBatch, step: int) -> None:
        self._tally.add(self.segmenter, batch)

    def end_validation(self, step: int) -> None:
        self.figures = self._tally.figures()
        values = {"val/miou": self.figures.miou, "val/pixel_accuracy": self.figures.pixel_accuracy}
        self.learner.log_validation(values, step)

    def describe(self) -> str:
        assert self.figures is not None
        figures = self.figures
        return f"mIoU {figures.miou:.2f}% over {figures.extent} classes  pixel accuracy {figures.pixel_accuracy:.2f}%"

    def checkpoint_state(self) -> dict[str, Any]:
        return {"figures": None if self.figures is None else asdict(self.figures)}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        self.figures = None if state["figures"] is None else IntersectionOverUnion(**state["figures"])

    def save(self, *, measured: bool) -> None:
        if self._context.processes.first:
            save_whole(
                self._context.folder.segmenter,
                self.segmenter,
                self.segmenter.backbone,
                head=HEAD,
                resolution=self._recipe.crop,
                classes=self._recipe.class_names,
            )


def poly_schedule(recipe: Segmentation, optimizer: Optimizer) -> Scheduler:
    """Build the learning-rate schedule by optimiser steps: linear warm-up, then polynomial decay."""
    return PolyLRScheduler(
        optimizer,
        t_initial=recipe.steps - recipe.warmup_steps,  # after the warm-up
        power=recipe.power,
        lr_min=recipe.min_lr,
        warmup_t=recipe.warmup_steps,
        warmup_lr_init=recipe.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def segmentation_losses(model: nn.Module, batch: SegmentationBatch, *, auxiliary_weight: float) -> dict[str, Tensor]:
    """Compute the losses of a segmenter on a batch."""
    scores = model(batch.images.float() / 255)
    terms = {"decoder": cross_entropy(scores.logits, batch.labels)}
    if scores.auxiliary is not None:
        terms["auxiliary"] = auxiliary_weight * cross_entropy(scores.auxiliary, batch.labels)
    return terms


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of the labelled pixels; 0 if there are none.

    Args:
        logits: `[B, K, h, w]`.
        labels: `[B, h, w]`, 255 for pixels without a label.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
