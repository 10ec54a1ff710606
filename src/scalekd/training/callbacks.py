"""What happens around the steps: checkpoints, a clean stop on Ctrl-C, and what the user sees."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import Profiler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scalekd.training.folder import RunFolder
from scalekd.training.module import DistillationModule


class Interrupted(Exception):  # noqa: N818 (no error: the user asked for it)
    """The user stopped the run; a checkpoint is written."""


class Keeper(Callback):
    """Writes the checkpoint and the student at each validation, and on Ctrl-C after the step in progress.

    Args:
        folder: Where to.
        classes: Class names for the student's card.
        interval: Micro-batches between validations.
        validates: Whether there is a validation; without one it writes when one would be.
    """

    def __init__(self, folder: RunFolder, classes: tuple[str, ...], *, interval: int, validates: bool) -> None:
        self._folder, self._classes = folder, classes
        self._interval, self._validates = interval, validates
        self._asked_to_stop = False
        self._former: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def ask(_signal: int, _frame: FrameType | None) -> None:
            if self._asked_to_stop:
                raise Interrupted(f"stopped at once; --resume goes on from the last checkpoint in {self._folder.path}")
            self._asked_to_stop = True

        self._former = signal.signal(signal.SIGINT, ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning calls after a success only

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        at_interval = (batch_idx + 1) % self._interval == 0
        if at_interval and self._validates:
            return  # the validation comes next
        if at_interval or (self._asked_to_stop and stepped):
            self._save(trainer, pl_module, None)
        if self._asked_to_stop and stepped:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module, round(float(trainer.callback_metrics["val/top1"]), 2))
        if self._asked_to_stop:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        raise Interrupted(
            f"stopped at step {trainer.global_step}; --resume goes on with the run in {self._folder.path}"
        )

    def _save(self, trainer: Trainer, pl_module: LightningModule, top1: float | None) -> None:
        assert isinstance(pl_module, DistillationModule)
        pl_module.check_finite()
        partial = self._folder.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self._folder.checkpoint)
        pl_module.final_student.save(self._folder.student, self._classes, top1)


class DataClock(Profiler):
    """Counts the seconds in which the training loop has waited for batches.

    Lightning tells a profiler when it asks the loader for the next one, and when it has got it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited = self._asked = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._asked


class Display(Callback):
    """A progress bar with images a second, data wait and each loss term, and one line a validation or interval.

    Data wait is the share of time in which training has waited for batches since the last line.

    Args:
        console: Where to; where it is no terminal only the lines are printed.
        clock: The trainer's profiler.
        batch: Global batch.
        steps_per_epoch: Optimiser steps an epoch.
        epochs: Epochs of the run.
        interval: Micro-batches between the lines of a run without validation; None where validations time them.
    """

    def __init__(
        self,
        console: Console,
        clock: DataClock,
        *,
        batch: int,
        steps_per_epoch: int,
        epochs: int,
        interval: int | None,
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._console, self._batch, self._steps_per_epoch, self._epochs = console, batch, steps_per_epoch, epochs
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}  {task.fields[terms]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps_per_epoch * epochs, epoch=1, epochs=epochs, speed="", terms="")
        self._started = self._waited = 0.0
        self._since_step = 0
        self._last_speed = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.update(self._task, completed=trainer.global_step)
        self._bar.start()
        self._restart_clock(trainer)

    def _restart_clock(self, trainer: Trainer) -> None:
        self._started, self._since_step = time.perf_counter(), trainer.global_step
        self._waited = self._clock.waited

    def _speed(self, trainer: Trainer) -> dict[str, float]:
        """Images a second and the share of time spent waiting for data, since the last line."""
        elapsed = time.perf_counter() - self._started
        return {
            "images_per_second": (trainer.global_step - self._since_step) * self._batch / elapsed,
            "data_wait": (self._clock.waited - self._waited) / elapsed,
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self._bar.disable and step % 5 == 0:
            terms = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("train/") and k != "train/loss"}
            self._bar.update(
                self._task,
                completed=step,
                epoch=min(step // self._steps_per_epoch + 1, self._epochs),
                speed=_in_words(self._speed(trainer)),
                terms=" ".join(f"{name.removeprefix('train/')} {float(value):.2f}" for name, value in terms.items()),
            )

        if self._interval is not None and (batch_idx + 1) % self._interval == 0:
            self.on_validation_start(trainer, pl_module)
            self.on_validation_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        speed = self._speed(trainer)
        self._last_speed = _in_words(speed)
        for logger in trainer.loggers:
            logger.log_metrics(speed, step=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.global_step // self._steps_per_epoch}/{self._epochs}"]
        parts += [f"{name.removeprefix('val/')} {metrics[name]:.2f}%" for name in metrics if name.startswith("val/")]
        parts += [f"loss {metrics['train/loss']:.3f}"]
        cosines = [f"{name.removeprefix('cosine/')} {metrics[name]:.2f}" for name in metrics if "cosine/" in name]
        parts += [f"cosines {', '.join(cosines)}"] if cosines else []
        self._console.print("  ".join([*parts, self._last_speed]), highlight=False, soft_wrap=True, markup=False)
        self._restart_clock(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._bar.stop()  # Lightning tears down after a success only


def _in_words(speed: dict[str, float]) -> str:
    return f"{speed['images_per_second']:.0f} img/s  data wait {speed['data_wait']:.0%}"
