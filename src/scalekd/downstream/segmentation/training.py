"""The Lightning module around a segmenter."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from scalekd.data import CorruptImages
from scalekd.downstream.module import TransferModule
from scalekd.downstream.segmentation.data import Batch
from scalekd.downstream.segmentation.model import Segmenter
from scalekd.downstream.segmentation.schema import IGNORED, Segmentation
from scalekd.downstream.segmentation.testing import Figures, Tally, check, classify
from scalekd.errors import UserError
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.models.failure import naming_model


class SegmentationModule(TransferModule):
    """Trains a segmenter and measures it.

    Args:
        segmenter: The model.
        recipe: The run's settings.
        corrupt: Counter of unreadable files.

    Attributes:
        figures: Of the last validation.
    """

    def __init__(self, segmenter: Segmenter, recipe: Segmentation, corrupt: CorruptImages) -> None:
        super().__init__(segmenter, recipe, steps=recipe.steps, interval=recipe.validate_every, corrupt=corrupt)
        self.recipe = recipe
        self.figures: Figures | None = None
        self._tally: Tally | None = None

    @property
    def segmenter(self) -> Segmenter:
        """What is measured and saved."""
        assert isinstance(self.final, Segmenter)
        return self.final

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        check(batch, self.corrupt)
        if not batch.images.numel():
            raise UserError("data: no image of a batch can be read; max_corrupt says how many may be unreadable")
        with naming_model("backbone", self.segmenter.backbone.name, batch.images.shape, "be trained on"):
            return losses(self.model, batch.images, batch.labels, self.recipe.auxiliary_weight)

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(len(self.recipe.class_names), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check(batch, self.corrupt)
        if batch.images.numel():
            assert self._tally is not None
            predicted = classify(self.segmenter, batch.images, batch.labels.shape[-2:], self.recipe)
            self._tally.add(predicted, batch.labels)

    def on_validation_epoch_end(self) -> None:
        assert self._tally is not None
        self.figures = self._tally.figures()
        values = {"val/miou": self.figures.miou, "val/pixel_accuracy": self.figures.pixel_accuracy}
        self.log_figures(values, self.global_step)

    def describe(self) -> str:
        assert self.figures is not None
        figures = self.figures
        return f"mIoU {figures.miou:.2f}% over {figures.extent} classes  pixel accuracy {figures.pixel_accuracy:.2f}%"

    @property
    def measured(self) -> dict[str, Any] | None:
        return None if self.figures is None else asdict(self.figures)

    @measured.setter
    def measured(self, values: dict[str, Any] | None) -> None:
        self.figures = None if values is None else Figures(**values)

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        recipe = self.recipe
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


def losses(model: nn.Module, images: Tensor, labels: Tensor, auxiliary_weight: float) -> dict[str, Tensor]:
    """The losses of a segmenter on images `[B, 3, h, w]`, uint8, and labels `[B, h, w]`."""
    scores = model(images.float() / 255)
    terms = {"decoder": cross_entropy(scores.logits, labels)}
    if scores.auxiliary is not None:
        terms["auxiliary"] = auxiliary_weight * cross_entropy(scores.auxiliary, labels)
    return terms


def try_training(segmenter: Segmenter, recipe: Segmentation) -> None:
    """Train a copy of a segmenter for one step on noise: what cannot be trained is refused before the run starts.

    Args:
        segmenter: What will be trained; it and the random state are left as they are.
        recipe: The run's settings.

    Raises:
        ModelError: If the step fails; names the backbone and the images' shape.
    """
    device, shape = pick_device(recipe.accelerator), (2, 3, recipe.crop, recipe.crop)  # the fewest that UPerNet takes
    with torch.random.fork_rng(), naming_model("backbone", segmenter.backbone.name, shape, "be trained on"):
        trial = copy.deepcopy(segmenter).to(device).train()
        images = torch.randint(0, IGNORED, shape, dtype=torch.uint8, device=device)
        with autocast(device, pick_dtype(recipe.precision, device)):
            terms = losses(trial, images, images[:, 0] % len(recipe.class_names), recipe.auxiliary_weight)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled pixels; 0 where there are none.

    Args:
        logits: `[B, K, h, w]`.
        labels: `[B, h, w]`, 255 for pixels without a label.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
