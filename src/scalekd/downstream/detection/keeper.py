"""What happens around the steps of a detection run: checkpoints, a clean stop, and a line a validation."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console

from scalekd.downstream.detection.folder import DetectionFolder
from scalekd.downstream.detection.module import DetectionModule
from scalekd.training import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DetectionKeeper(Callback):
    """Writes the checkpoint at each validation and, when asked to stop, after the step in progress.

    Args:
        folder: Where to.
        console: Where a line a validation is printed.
    """

    def __init__(self, folder: DetectionFolder, console: Console) -> None:
        self._folder, self._console = folder, console
        self._asked_to_stop = False
        self._former: dict[int, Any] = {}
        self._since, self._since_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def ask(_signal: int, _frame: FrameType | None) -> None:
            if self._asked_to_stop:
                raise Interrupted(f"stopped at once; --resume goes on from the last checkpoint in {self._folder.path}")
            self._asked_to_stop = True

        self._former = {number: signal.signal(number, ask) for number in _SIGNALS}
        self._since, self._since_step = time.perf_counter(), trainer.global_step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning calls after a success only

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DetectionModule)
        completes = (batch_idx + 1) % pl_module.recipe.accumulate == 0
        interval = pl_module.steps_per_epoch * pl_module.recipe.accumulate * pl_module.recipe.validate_every
        if self._asked_to_stop and completes and (batch_idx + 1) % interval:  # at it the validation comes next
            self._save(trainer, pl_module)
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        images = (trainer.global_step - self._since_step) * pl_module.recipe.batch
        self._speed = images / (time.perf_counter() - self._since)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        assert pl_module.boxes is not None
        assert pl_module.masks is not None
        self._save(trainer, pl_module)
        epoch, recipe = trainer.global_step // pl_module.steps_per_epoch, pl_module.recipe
        figures = "  ".join(
            f"{kind} AP {measured.figures['AP'] or 0:.2f} (50: {measured.figures['AP50'] or 0:.2f})"
            for kind, measured in (("box", pl_module.boxes), ("mask", pl_module.masks))
        )
        loss = f"loss {float(pl_module.terms['loss']):.3f}  " if pl_module.terms else ""
        line = f"epoch {epoch}/{recipe.epochs}  {figures}  {loss}{self._speed:.1f} img/s"
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        self._since, self._since_step = time.perf_counter(), trainer.global_step
        if self._asked_to_stop:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        raise Interrupted(
            f"stopped at step {trainer.global_step}; --resume goes on with the run in {self._folder.path}"
        )

    def _save(self, trainer: Trainer, module: DetectionModule) -> None:
        module.check_finite()
        partial = self._folder.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self._folder.checkpoint)
