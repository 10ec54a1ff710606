"""The Lightning module around a detector."""

from __future__ import annotations

from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from timm.scheduler import MultiStepLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from scalekd.data import CorruptImages, seeded
from scalekd.downstream.detection.coco import CocoSplit
from scalekd.downstream.detection.data import DetectionBatch
from scalekd.downstream.detection.evaluation import AveragePrecision, as_results, average_precision
from scalekd.downstream.detection.schema import Detection
from scalekd.errors import UserError
from scalekd.training.optimisation import build_optimizer

_MEND = "the last checkpoint is kept. A lower lr, a longer warm-up or clip usually mends it"


class DetectionModule(LightningModule):
    """Trains a detector, and measures it by COCO's protocol.

    Args:
        recipe: The run's settings.
        detector: From `build_detector`.
        val: What it is measured on.
        steps_per_epoch: Optimiser steps an epoch.
        corrupt: Counter of unreadable images.

    Attributes:
        boxes, masks: Figures of the last validation; None before the first.
        terms: Last value of each loss.
    """

    def __init__(
        self, recipe: Detection, detector: MaskRCNN, val: CocoSplit, *, steps_per_epoch: int, corrupt: CorruptImages
    ) -> None:
        super().__init__()
        self.recipe, self.val, self.steps_per_epoch, self.corrupt = recipe, val, steps_per_epoch, corrupt
        self.detector = detector
        self.ema = ModelEmaV3(detector, decay=recipe.ema) if recipe.ema else None
        self.boxes: AveragePrecision | None = None
        self.masks: AveragePrecision | None = None
        self.terms: dict[str, Tensor] = {}
        self._results: list[dict[str, Any]] = []

    @property
    def final_detector(self) -> nn.Module:
        """The weights that are evaluated and saved: the moving average where there is one."""
        return self.detector if self.ema is None else cast(nn.Module, self.ema.module)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        self.corrupt.add(batch.corrupt)
        # Sizes, sampled boxes and drop path draw from (seed, batch): a resumed run draws the same.
        with seeded(self.recipe.seed, batch_idx):
            losses: dict[str, Tensor] = self.detector(scaled(batch.images), batch.targets)
        total = torch.stack(list(losses.values())).sum()
        self.terms = {"loss": total.detach()} | {n.removeprefix("loss_"): v.detach() for n, v in losses.items()}
        if not torch.isfinite(total):
            bad = [name for name, value in self.terms.items() if name != "loss" and not torch.isfinite(value)]
            raise UserError(f"loss: {', '.join(bad)} became NaN or infinite at step {self.global_step}; {_MEND}")
        self._log_training(batch_idx)
        return total

    def _log_training(self, batch_idx: int) -> None:
        """Write a line of the step that this batch completes, if it is one to be logged."""
        step, completes = self.global_step + 1, (batch_idx + 1) % self.recipe.accumulate == 0
        if completes and (step % self.recipe.log_every == 0 or step == self.trainer.max_steps):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_figures({f"train/{name}": float(v) for name, v in self.terms.items()} | {"lr": lr}, step)

    def check_finite(self) -> None:
        """Make sure that what is about to be saved is worth keeping.

        Raises:
            UserError: If a parameter is NaN or infinite; names it.
        """
        for name, parameter in self.final_detector.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(f"detector: {name} became NaN or infinite by step {self.global_step}; {_MEND}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.detector)

    def on_validation_epoch_start(self) -> None:
        self._results = []

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.corrupt.add(batch.corrupt)
        if not batch.images:
            return
        outputs = self.final_detector(scaled(batch.images))
        numbers = [self.val.pictures[index].number for index in batch.numbers]
        self._results += as_results(outputs, numbers, self.val.category_ids)

    def on_validation_epoch_end(self) -> None:
        self.boxes = average_precision(self.val.truth, self._results, "bbox")
        self.masks = average_precision(self.val.truth, self._results, "segm")
        figures = {
            f"val/{kind}_{name}": value
            for kind, measured in (("box", self.boxes), ("mask", self.masks))
            for name, value in measured.figures.items()
            if value is not None
        }
        self.log_figures(figures, self.global_step)

    def log_figures(self, figures: dict[str, float], step: int) -> None:
        """Write to the loggers at once: Lightning would after the checkpoint, and a stop between loses the line."""
        for logger in self.loggers:
            logger.log_metrics(figures, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        measured = {"boxes": self.boxes, "masks": self.masks}
        checkpoint["measured"] = {name: vars(value) for name, value in measured.items() if value is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["measured"].items():
            setattr(self, name, AveragePrecision(**value))

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = build_optimizer(recipe, self.detector)
        schedule = MultiStepLRScheduler(
            optimizer,
            decay_t=[epoch * self.steps_per_epoch + 1 for epoch in recipe.milestones],  # timm drops one step before
            decay_rate=0.1,
            warmup_t=recipe.warmup_steps,
            warmup_lr_init=recipe.warmup_lr,
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)


def scaled(images: list[Tensor]) -> list[Tensor]:
    """uint8 -> float32 in [0, 1]."""
    return [image.float() / 255 for image in images]
