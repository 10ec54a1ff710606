"""What the trainings of all tasks share: a model, its moving average, losses that must be finite, and log lines."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pytorch_lightning import LightningModule
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from scalekd.data import CorruptImages, seeded
from scalekd.downstream.keys import Transfer
from scalekd.errors import UserError
from scalekd.training.optimisation import build_optimizer

_MEND = "the last checkpoint is kept. A lower lr, a longer warm-up or clip usually mends it"


class TransferModule(LightningModule):
    """Trains a model and measures it; a task says what its losses and its figures are.

    Args:
        model: What is trained.
        recipe: The run's settings.
        steps: Optimiser steps of the run.
        interval: Optimiser steps between validations.
        corrupt: Counter of unreadable images.

    Attributes:
        terms: The last value of each loss, `loss` the sum.
    """

    def __init__(
        self, model: nn.Module, recipe: Transfer, *, steps: int, interval: int, corrupt: CorruptImages
    ) -> None:
        super().__init__()
        self.model, self.settings, self.corrupt = model, recipe, corrupt
        self.steps, self.interval = steps, interval
        self.ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
        self.terms: dict[str, Tensor] = {}

    @property
    def final(self) -> nn.Module:
        """What is measured and saved: the moving average where there is one."""
        model = self.model if self.ema is None else self.ema.module
        assert isinstance(model, nn.Module)
        return model

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalar losses by name, which are summed up."""

    @abstractmethod
    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        """The learning rate by optimiser steps."""

    @abstractmethod
    def describe(self) -> str:
        """The figures of the last validation, in a few words."""

    @property
    @abstractmethod
    def measured(self) -> dict[str, Any] | None:
        """The figures of the last validation as plain values, for a checkpoint."""

    @measured.setter
    def measured(self, values: dict[str, Any] | None) -> None: ...

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # Dropout, drop path, sampled boxes and sizes draw from (seed, batch): a resumed run draws the same.
        with seeded(self.settings.seed, batch_idx):
            losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.terms = {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}
        step, completes = self.global_step + 1, (batch_idx + 1) % self.settings.accumulate == 0
        if completes and (step % self.settings.log_every == 0 or step == self.steps):
            self._check_losses()
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_figures({f"train/{name}": float(value) for name, value in self.terms.items()} | {"lr": lr}, step)
        return total

    def _check_losses(self) -> None:
        bad = [name for name, value in self.terms.items() if not torch.isfinite(value)]
        if bad:
            raise UserError(f"loss: {bad[-1]} became NaN or infinite by step {self.global_step}; {_MEND}")

    def check_finite(self) -> None:
        """Make sure that what is about to be saved is worth keeping.

        Raises:
            UserError: If a loss or a weight is NaN or infinite; names it.
        """
        self._check_losses()
        for name, parameter in self.final.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(f"model: {name} became NaN or infinite by step {self.global_step}; {_MEND}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def log_figures(self, figures: dict[str, float], step: int) -> None:
        """Write to the loggers at once: Lightning would after the checkpoint, and a stop between loses the line."""
        for logger in self.loggers:
            logger.log_metrics(figures, step=step)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.settings, self.model)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.build_schedule(optimizer), "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)
