"""What happens around the steps of a run: checkpoints, a clean stop, a progress bar, and a line a validation."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scalekd.downstream.module import TransferModule
from scalekd.training.checkpoints import RUN, Checkpoints
from scalekd.training.folder import RunFolder
from scalekd.training.stopping import Interrupted, Stop


class Keeper(Callback):
    """Writes a checkpoint after each validation, in between as often as asked for, and where the run is stopped.

    Args:
        folder: The run's folder.
        checkpoints: Where checkpoints go.
        stop: Whether somebody asks to stop.
        save: Writes the model's weights.
        console: Where the lines go, with a bar below them if it is a terminal.
    """

    def __init__(
        self, folder: RunFolder, checkpoints: Checkpoints, stop: Stop, save: Callable[[], object], console: Console
    ) -> None:
        self._folder, self._checkpoints, self._stop, self._save_weights = folder, checkpoints, stop, save
        self._say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._before, self._started = 0.0, time.perf_counter()
        self._saved_at = self._since = self._started
        self._since_step = 0
        self._speed = ""

    @property
    def seconds(self) -> float:
        """Seconds that the run has trained, former starts included."""
        return self._before + time.perf_counter() - self._started

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, TransferModule)
        checkpoint[RUN] = {
            "step": trainer.global_step,
            "logs": self._folder.sync_logs(),
            "seconds": self.seconds,
            "corrupt_images": sorted(pl_module.corrupt.paths),
            "measured": pl_module.measured,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, TransferModule)
        run = checkpoint[RUN]
        self._before = run["seconds"]
        pl_module.corrupt.paths.update(run["corrupt_images"])
        pl_module.measured = run["measured"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.listen()  # Lightning has put its own in between
        self._stop.patient = True
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, loss=0.0)
        self._bar.start()
        self._restart_clock(trainer)
        self._saved_at = time.perf_counter()

    def _restart_clock(self, trainer: Trainer) -> None:
        self._since, self._since_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TransferModule)
        accumulate = pl_module.settings.accumulate
        if (batch_idx + 1) % accumulate:
            return
        if not self._bar.disable and trainer.global_step % 5 == 0:
            self._bar.update(self._task, completed=trainer.global_step, loss=float(pl_module.terms["loss"]))
        if (batch_idx + 1) % (accumulate * pl_module.interval) == 0:
            return  # the validation comes next
        minutes = pl_module.settings.checkpoint_minutes
        is_time = minutes is not None and time.perf_counter() - self._saved_at >= 60 * minutes
        if self._stop.asked is not None or is_time:
            self._save(trainer, pl_module)
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        images = (trainer.global_step - self._since_step) * pl_module.settings.batch
        self._speed = f"{images / (time.perf_counter() - self._since):.1f} img/s"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        loss = f"loss {float(pl_module.terms['loss']):.3f}"
        self._say(f"step {trainer.global_step}/{trainer.max_steps}  {pl_module.describe()}  {loss}  {self._speed}")
        self._save(trainer, pl_module)
        self._restart_clock(trainer)
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._stop.asked is not None:
            where = f"--resume goes on with the run in {self._folder.path}"
            raise Interrupted(f"stopped at step {trainer.global_step}; {where}", signal.Signals(self._stop.asked))

    def _save(self, trainer: Trainer, module: TransferModule) -> None:
        module.check_finite()
        trainer.save_checkpoint(self._checkpoints.path(trainer.global_step))
        self._checkpoints.prune(module.settings.keep)
        self._save_weights()
        self._saved_at = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._bar.stop()
        self._stop.patient = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning calls after a success only
