"""What the user sees of a run."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import Profiler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from scalekd.training.learner import Learner
from scalekd.training.module import DistillationModule


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
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}", table_column=Column(no_wrap=True)),
            BarColumn(20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            # The only one that gives way in a narrow terminal.
            TextColumn(
                "{task.fields[speed]}  {task.fields[terms]}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps_per_epoch * epochs, epoch=1, epochs=epochs, speed="", terms="")
        self._started = self._waited = 0.0
        self._since_step = 0
        self._last_speed = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._bar.update(self._task, completed=pl_module.step)
        self._bar.start()
        self._restart_clock(pl_module)

    def _restart_clock(self, module: DistillationModule) -> None:
        self._started, self._since_step = time.perf_counter(), module.step
        self._waited = self._clock.waited

    def _speed(self, module: DistillationModule) -> dict[str, float]:
        """Images a second and the share of time spent waiting for data, since the last line."""
        elapsed = time.perf_counter() - self._started
        return {
            "images_per_second": (module.step - self._since_step) * self._batch / elapsed,
            "data_wait": (self._clock.waited - self._waited) / elapsed,
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        step = pl_module.step
        if not self._bar.disable and step % 5 == 0:
            self._bar.update(
                self._task,
                completed=step,
                epoch=min(step // self._steps_per_epoch + 1, self._epochs),
                speed=_in_words(self._speed(pl_module)),
                terms=_terms(pl_module),
            )

        if self._interval is not None and (batch_idx + 1) % self._interval == 0:
            self.on_validation_start(trainer, pl_module)
            self.on_validation_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        speed = self._speed(pl_module)
        self._last_speed = _in_words(speed)
        for logger in trainer.loggers:
            logger.log_metrics(speed, step=pl_module.step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        parts = [f"epoch {pl_module.step // self._steps_per_epoch}/{self._epochs}"]
        learners = pl_module.learners
        parts += _figures(learners[0]) if len(learners) == 1 else [_summary(learner) for learner in learners]
        self._console.print("  ".join([*parts, self._last_speed]), highlight=False, soft_wrap=True, markup=False)
        self._restart_clock(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._bar.stop()  # Lightning tears down after a success only


def _in_words(speed: dict[str, float]) -> str:
    return f"{speed['images_per_second']:.0f} img/s  data wait {speed['data_wait']:.0%}"


def _terms(module: DistillationModule) -> str:
    """The loss term by term or, of several students, the losses."""
    if len(module.learners) > 1:
        return " ".join(f"{learner.name} {float(learner.figures['train/loss']):.2f}" for learner in module.learners)
    terms = {k: v for k, v in module.learners[0].figures.items() if k.startswith("train/") and k != "train/loss"}
    return " ".join(f"{name.removeprefix('train/')} {float(value):.2f}" for name, value in terms.items())


def _figures(learner: Learner) -> list[str]:
    """Accuracies, loss and cosines of a student that is alone."""
    cosines = [f"{k.removeprefix('cosine/')} {float(v):.2f}" for k, v in learner.figures.items() if "cosine/" in k]
    return [
        *(f"{name} {value:.2f}%" for name, value in learner.accuracies.items()),
        f"loss {float(learner.figures['train/loss']):.3f}",
        *([f"cosines {', '.join(cosines)}"] if cosines else []),
    ]


def _summary(learner: Learner) -> str:
    """Name, top-1 and loss of one of several students."""
    top1 = f"top1 {learner.accuracies['top1']:.2f}%, " if learner.accuracies else ""
    return f"{learner.name}: {top1}loss {float(learner.figures['train/loss']):.3f}"
