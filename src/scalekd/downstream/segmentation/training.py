"""The Lightning module around a segmenter, and what happens around its steps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.scheduler import PolyLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from scalekd.data import CorruptImages, seeded
from scalekd.downstream.segmentation.data import IGNORED, Batch
from scalekd.downstream.segmentation.model import Segmenter
from scalekd.downstream.segmentation.schema import Segmentation
from scalekd.downstream.segmentation.testing import Figures, Tally, check, classify
from scalekd.errors import UserError
from scalekd.training import Interrupted, RunFolder
from scalekd.training.optimisation import build_optimizer


class SegmentationModule(LightningModule):
    """Trains a segmenter and measures it.

    Args:
        segmenter: The model.
        recipe: The run's settings.
        accumulate: Micro-batches an optimiser step.
        corrupt: Counter of unreadable files.

    Attributes:
        figures: Of the last validation.
    """

    def __init__(self, segmenter: Segmenter, recipe: Segmentation, *, accumulate: int, corrupt: CorruptImages) -> None:
        super().__init__()
        self.segmenter, self.recipe, self.accumulate, self.corrupt = segmenter, recipe, accumulate, corrupt
        self.ema = ModelEmaV3(segmenter, decay=recipe.ema) if recipe.ema else None
        self.figures: Figures | None = None
        self.loss = torch.zeros(())
        self._tally: Tally | None = None

    @property
    def final(self) -> Segmenter:
        """What is tested and saved: the moving average where there is one."""
        model = self.segmenter if self.ema is None else self.ema.module
        assert isinstance(model, Segmenter)
        return model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        check(batch, self.corrupt)
        with seeded(self.recipe.seed, batch_idx):  # dropout and drop path: a resumed run draws the same
            scores = self.segmenter(batch.images.float() / 255)
        loss = cross_entropy(scores.logits, batch.labels)
        if scores.auxiliary is not None:
            loss = loss + self.recipe.auxiliary_weight * cross_entropy(scores.auxiliary, batch.labels)
        self.loss = loss.detach()
        step = self.global_step + 1
        completes = (batch_idx + 1) % self.accumulate == 0
        if completes and (step % self.recipe.log_every == 0 or step == self.recipe.steps):
            self.check_finite()
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self._log({"train/loss": float(self.loss), "lr": rate}, step)
        return loss

    def check_finite(self) -> None:
        """Make sure that the loss and all weights are worth keeping.

        Raises:
            UserError: If one is NaN or infinite; names it.
        """
        values = {"the loss": self.loss} | dict(self.segmenter.named_parameters())
        bad = next((name for name, value in values.items() if not torch.isfinite(value).all()), None)
        if bad is not None:
            raise UserError(
                f"loss: {bad} became NaN or infinite by step {self.global_step}; the last checkpoint is kept. "
                "A lower lr, a longer warm-up or clip usually mends it"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.segmenter)

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(len(self.recipe.class_names), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check(batch, self.corrupt)
        if batch.images.numel():
            assert self._tally is not None
            predicted = classify(self.final, batch.images, batch.labels.shape[-2:], self.recipe)
            self._tally.add(predicted, batch.labels)

    def on_validation_epoch_end(self) -> None:
        assert self._tally is not None
        self.figures = self._tally.figures()
        self._log({"val/miou": self.figures.miou, "val/pixel_accuracy": self.figures.pixel_accuracy}, self.global_step)

    def _log(self, values: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=step)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.recipe, self.segmenter)
        recipe = self.recipe
        schedule = PolyLRScheduler(
            optimizer,
            t_initial=recipe.steps - recipe.warmup_steps,  # after the warm-up
            power=recipe.power,
            lr_min=recipe.min_lr,
            warmup_t=recipe.warmup_steps,
            warmup_lr_init=recipe.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled pixels; 0 where there are none.

    Args:
        logits: `[B, K, h, w]`.
        labels: `[B, h, w]`, 255 for pixels without a label.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


class Keeper(Callback):
    """Writes checkpoint and weights at each validation, and on Ctrl-C after the step in progress; shows progress.

    Args:
        folder: Where to.
        save: Writes the weights.
        console: Where a line is printed for each validation, with a bar below if it is a terminal.
    """

    def __init__(self, folder: RunFolder, save: Callable[[], object], console: Console) -> None:
        self._folder, self._save_weights = folder, save
        self._say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._asked_to_stop = False
        self._former: Any = None
        self._since = (0.0, 0)  # time and step of the last line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def ask(_signal: int, _frame: FrameType | None) -> None:
            if self._asked_to_stop:
                raise Interrupted(f"stopped at once; --resume goes on from the last checkpoint in {self._folder.path}")
            self._asked_to_stop = True

        self._former = signal.signal(signal.SIGINT, ask)
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, loss=0.0)
        self._bar.start()
        self._since = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SegmentationModule)
        if not self._bar.disable and trainer.global_step % 5 == 0:
            self._bar.update(self._task, completed=trainer.global_step, loss=float(pl_module.loss))
        micro_batches = batch_idx + 1
        validates = micro_batches % (pl_module.recipe.validate_every * pl_module.accumulate) == 0
        if self._asked_to_stop and not validates and micro_batches % pl_module.accumulate == 0:
            self._stop(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SegmentationModule)
        seconds, steps = time.perf_counter() - self._since[0], trainer.global_step - self._since[1]
        self._speed = f"{steps * pl_module.recipe.batch / seconds:.1f} img/s" if steps else ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SegmentationModule)
        figures = pl_module.figures
        assert figures is not None
        self._say(
            f"step {trainer.global_step}/{trainer.max_steps}  mIoU {figures.miou:.2f}%  pixel accuracy "
            f"{figures.pixel_accuracy:.2f}%  loss {float(pl_module.loss):.3f}  {self._speed}"
        )
        self._save(trainer, pl_module)
        self._since = time.perf_counter(), trainer.global_step
        if self._asked_to_stop:
            self._stop(trainer, pl_module)

    def _stop(self, trainer: Trainer, module: SegmentationModule) -> None:
        self._save(trainer, module)
        step = trainer.global_step
        raise Interrupted(f"stopped at step {step}; --resume goes on with the run in {self._folder.path}")

    def _save(self, trainer: Trainer, module: SegmentationModule) -> None:
        module.check_finite()
        partial_file = self._folder.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial_file)
        os.replace(partial_file, self._folder.checkpoint)
        self._save_weights()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._bar.stop()
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning calls after a success only
