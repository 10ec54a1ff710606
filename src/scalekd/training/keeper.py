"""What of a run is kept, and when: checkpoints, the students' weights, and a clean stop."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from scalekd.data import Batch
from scalekd.energy import EnergyMeter
from scalekd.errors import UserError
from scalekd.training.checkpoints import RUN
from scalekd.training.group import Group
from scalekd.training.learner import NonFiniteLossError
from scalekd.training.modes import evaluating
from scalekd.training.module import DistillationModule
from scalekd.training.processes import Vote
from scalekd.training.stopping import Interrupted, Stop

_CHECKPOINT = 1  # a wish, see `Keeper._wish`


class Keeper(Callback):
    """Writes a checkpoint at each validation, in between as often as asked for, and where a run is stopped.

    A checkpoint is of the end of an optimiser step. One that is written during a validation says so: the run that is
    resumed from it begins with that validation.

    Args:
        group: Where to.
        stop: Whether somebody asks to stop.
        classes: Class names for the students' cards.
        interval: Micro-batches between validations.
        validation: The validation batches; without any it writes when a validation would be.
        keep: Checkpoints to keep.
        minutes: Minutes between checkpoints; None for those of the validations only.
        meter: Counts the energy of this start.
        say: Called with a line for the user.
    """

    def __init__(
        self,
        group: Group,
        stop: Stop,
        classes: tuple[str, ...],
        *,
        interval: int,
        validation: Iterable[Batch] | None,
        keep: int,
        minutes: float | None,
        meter: EnergyMeter,
        say: Callable[[str], object],
    ) -> None:
        self._group, self._stop, self._classes, self._say = group, stop, classes, say
        self._interval, self._validation, self._keep = interval, validation, keep
        self._meter = meter
        self._seconds_between = float("inf") if minutes is None else 60 * minutes
        self._before, self._started = 0.0, time.perf_counter()
        self._saved_at = self._started
        self._saved: int | None = None  # the step of the newest checkpoint
        self._exact = False  # whether the state is that of the end of a step
        self._unmeasured: dict[str, Any] | None = None  # during a validation: Lightning's state as it was before
        self._validation_due: int | None = None  # the step of a validation that was not ended
        self._logs: list[dict[str, int]] = []

    @property
    def seconds(self) -> float:
        """Seconds that the run has trained, former starts included."""
        return self._before + time.perf_counter() - self._started

    @property
    def energy(self) -> dict[str, float | None] | None:
        """What it took in these seconds on the first process's machine, see `EnergyMeter`."""
        return self._meter.energy

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, DistillationModule)
        if self._unmeasured is None:
            self._logs = self._sync_logs(pl_module)
        else:
            checkpoint["loops"]["fit_loop"] = self._unmeasured
        checkpoint[RUN] = {
            "step": pl_module.step,
            "validation_due": self._unmeasured is not None,
            "logs": self._logs,
            "seconds": self.seconds,
            "energy": self.energy,
            "corrupt_images": sorted(set().union(*pl_module.processes.gather(pl_module.corrupt.paths))),
            "students": [learner.progress() for learner in pl_module.learners],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, DistillationModule)
        run = checkpoint[RUN]
        self._before, self._saved = run["seconds"], run["step"]
        self._meter.go_on(run.get("energy"))
        self._validation_due = run["step"] if run["validation_due"] else None
        pl_module.corrupt.paths.update(run["corrupt_images"])
        for learner, progress in zip(pl_module.learners, run["students"], strict=True):
            learner.restore_progress(progress)

    @torch.no_grad()  # inference mode would spoil for training what a model keeps from its first forward
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the validation that was not ended; Lightning takes it for done."""
        assert isinstance(pl_module, DistillationModule)
        if self._validation_due is None or self._validation is None:
            return
        with evaluating(pl_module):
            for learner in pl_module.learners:
                learner.start_validation()
            for batch in self._validation:
                self._meter.keep_up()
                on_device = trainer.strategy.batch_to_device(batch)
                with trainer.precision_plugin.val_step_context():
                    pl_module.validate(on_device, self._validation_due)
            for learner in pl_module.learners:
                learner.end_validation(self._validation_due)
            pl_module.save(self._classes, measured=True)

    def _sync_logs(self, module: DistillationModule) -> list[dict[str, int]]:
        return [folder.sync_logs() for folder in self._group.runs] if module.processes.first else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._vote = Vote(pl_module.processes)
        self._stop.listen()  # Lightning has put its own in between
        self._stop.patient = self._exact = True
        self._saved_at = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._exact = False
        self._meter.keep_up()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        if (batch_idx + 1) % pl_module.accumulate:
            return
        self._exact = True
        wish = self._vote.cast(self._wish())
        if (batch_idx + 1) % self._interval == 0:
            if self._validation is not None:
                self._unmeasured = copy.deepcopy(trainer.fit_loop.state_dict())
                self._logs = self._sync_logs(pl_module)  # what comes before the validation may fail too
                return  # the validation comes next
            self._save(trainer, pl_module)
            pl_module.save(self._classes)
        elif wish > _CHECKPOINT or (wish and self._saved != pl_module.step - 1):  # an answer may be a step late
            self._save(trainer, pl_module)
            if wish > _CHECKPOINT:
                pl_module.save(self._classes)
        self._stop_if_wished(pl_module, wish)

    def _wish(self) -> int:
        """Nothing (0), a checkpoint (1), or to be stopped by a signal (1 and its number)."""
        if self._stop.asked is not None:
            return _CHECKPOINT + self._stop.asked
        return _CHECKPOINT if time.perf_counter() - self._saved_at >= self._seconds_between else 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._logs = self._sync_logs(pl_module)
        if pl_module.processes.count > 1:  # they cannot stop in it, and the launcher kills what takes too long
            self._save(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._meter.keep_up()
        if self._stop.asked and pl_module.processes.count == 1:  # several have other numbers of batches
            self._save(trainer, pl_module)
            self._stop_if_wished(pl_module, self._wish())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._unmeasured = None
        self._save(trainer, pl_module)
        pl_module.save(self._classes, measured=True)
        self._stop_if_wished(pl_module, max(pl_module.processes.gather(self._wish())))

    def _stop_if_wished(self, module: DistillationModule, wish: int) -> None:
        if wish > _CHECKPOINT:
            self._vote.close()
            command = f"scalekd distill --resume --output {self._group.path}"
            raise Interrupted(
                f"stopped at step {module.step}; go on with: {command}", signal.Signals(wish - _CHECKPOINT)
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._vote.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, DistillationModule)
        if self._stop.patient and not isinstance(exception, Interrupted):
            fit_to_save = pl_module.processes.count == 1 and not isinstance(exception, NonFiniteLossError)
            if fit_to_save and self._exact and self._saved != pl_module.step:
                try:
                    self._save(trainer, pl_module)
                except (UserError, OSError) as error:  # what is told is why the run ends
                    self._say(f"warning: {error}")
            last = "no checkpoint was written" if self._saved is None else f"the checkpoint is of step {self._saved}"
            self._say(f"stopped in step {pl_module.step + 1}; {last}")
        self._stop.patient = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop.patient = False

    def _save(self, trainer: Trainer, module: DistillationModule) -> None:
        module.check_finite()
        checkpoints = self._group.checkpoints
        trainer.save_checkpoint(checkpoints.path(module.step))
        if module.processes.first:
            checkpoints.prune(self._keep)
        self._saved, self._saved_at = module.step, time.perf_counter()
