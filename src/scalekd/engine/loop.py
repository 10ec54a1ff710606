"""The training loop: batches -> loss -> backward -> step -> log -> checkpoint -> validate, with stop and resume.

Everything that trains goes through `Loop.run`. It knows no model and no data: a `Task` says what the loss of a batch
is, what is measured and what is saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scalekd.energy import EnergyMeter
from scalekd.engine.display import Display
from scalekd.engine.learner import NonFiniteLossError
from scalekd.engine.modes import evaluating
from scalekd.engine.processes import Processes, Vote, Wish
from scalekd.engine.sharding import kept_state, restore_state
from scalekd.engine.signals import Stop
from scalekd.engine.task import Task
from scalekd.errors import Interrupted, UserError
from scalekd.hardware import autocast, to_device
from scalekd.runs.checkpoints import RUN, Checkpoint, Checkpoints
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import naming


@dataclass(frozen=True)
class Schedule:
    """What happens at which optimiser step.

    Attributes:
        steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps of an epoch.
        batch: Images of an optimiser step, over all processes.
        accumulate: Micro-batches of an optimiser step in each process.
        validate_every: Steps between validations, or between checkpoints where nothing is validated.
        log_every: Steps between log lines; the last step has one too.
        checkpoint_minutes: Minutes after which a checkpoint is written between validations too; None for never.
        keep: Checkpoints to keep.
    """

    steps: int
    steps_per_epoch: int
    batch: int
    accumulate: int
    validate_every: int
    log_every: int
    checkpoint_minutes: float | None
    keep: int


class Loop:
    """Trains a task from one step to the last, and keeps what a resumed run needs.

    A checkpoint is of the end of an optimiser step. One that is written while a validation is under way says so: the
    run that is resumed from it begins with that validation.

    Args:
        task: What is trained.
        schedule: What happens at which step.
        folders: The run folder of each learner, whose logs a checkpoint keeps the sizes of.
        checkpoints: Where checkpoints go.
        stop: Whether somebody asks to stop.
        processes: Those that train together.
        device: Where the models are.
        dtype: The autocast type.
        display: What the user sees.
        say: Called with a line for the user.
        meter: Counts the energy of this start.
        resume_with: The command that resumes the run, for the message when it is stopped.

    Attributes:
        step: Optimiser steps taken.
    """

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        *,
        folders: Sequence[RunFolder],
        checkpoints: Checkpoints,
        stop: Stop,
        processes: Processes,
        device: torch.device,
        dtype: torch.dtype,
        display: Display,
        say: Callable[[str], object],
        meter: EnergyMeter,
        resume_with: str,
    ) -> None:
        self.task, self.schedule, self.step = task, schedule, 0
        self._folders, self._checkpoints, self._stop, self._processes = folders, checkpoints, stop, processes
        self._device, self._autocast = device, partial(autocast, device, dtype)
        self._display, self._say, self._meter, self._resume_with = display, say, meter, resume_with
        self._models = nn.ModuleList(task.learners)
        self._optimizers = [learner.optimizer for learner in task.learners]
        self._vote = Vote(processes)
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._saved_at, self._saved_step = self._started, -1
        self._at_step_end = True  # whether the models are as a step has left them
        self._validation_due = False  # whether the validation of this step has begun and not ended
        self._log_sizes: list[dict[str, int]] = []

    @property
    def seconds(self) -> float:
        """Seconds that the run has trained, earlier starts included."""
        return self._seconds_before + time.perf_counter() - self._started

    def run(
        self,
        batches: Callable[[int], Iterable[Any]],
        validation: Iterable[Any] | None,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, Any]:
        """Train to the last step.

        Args:
            batches: The training micro-batches of this process from one of them on.
            validation: The validation batches; None where nothing is validated.
            checkpoint: Where to resume.

        Returns:
            What a result says of the training: samples, steps, seconds, energy, unreadable images.

        Raises:
            Interrupted: If a signal stopped the run; a checkpoint is written.
            UserError: For whatever ends it; a checkpoint is written where a step had just ended.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        self._stop.polled = True
        try:
            if self._validation_due and validation is not None:
                self._validate(validation)
            self._display.start(self.step)
            if self.step < self.schedule.steps:
                self._train(batches(self.step * self.schedule.accumulate), validation)
            self._vote.close()
        except BaseException as error:
            self._save_what_is_whole(error)
            if isinstance(error, UserError) and self._stop.asked is not None:
                raise Interrupted(f"stopped by {self._stop.asked.name}, while: {error}", self._stop.asked) from error
            raise
        finally:
            self._stop.polled = False
            self._display.close()
        unreadable = set().union(*self._processes.gather(self.task.corrupt.paths))
        return {
            "samples": self.step * self.schedule.batch,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "energy": self._meter.energy,
            "corrupt_images": sorted(unreadable),
        }

    def _train(self, batches: Iterable[Any], validation: Iterable[Any] | None) -> None:
        schedule = self.schedule
        for number, batch in enumerate(self._display.timed(batches), start=self.step * schedule.accumulate):
            completes = (number + 1) % schedule.accumulate == 0
            self._at_step_end = False
            self._meter.keep_up()
            self._learn(batch, number, completes)
            if not completes:
                continue
            self.step += 1
            self._at_step_end = True
            self._display.advance(self.step, self._terms)
            wish = self._vote.cast(self._wish())
            if self.step % schedule.validate_every == 0 and validation is not None:
                self._validate(validation)
                wish = max(self._processes.gather(self._wish()))
            elif self.step % schedule.validate_every == 0:
                self._log_speed()
                self._display.line(self.step, self.task.summary())
                self._save_all(measured=False)
            elif wish.stop:
                self._save_all(measured=False)
            elif wish.checkpoint and self._saved_step != self.step - 1:  # several processes hear it a step late
                self._write_checkpoint()
            self._stop_if(wish)
            if self.step == schedule.steps:
                return

    def _learn(self, batch: Any, number: int, completes: bool) -> None:
        """One micro-batch: losses and gradients of each learner and, where the micro-batch completes it, the step."""
        task, step = self.task, self.step + 1
        task.corrupt.add(batch.corrupt)
        over_all = number * self._processes.count + self._processes.rank
        batch = to_device(batch, self._device)
        with self._autocast():
            batch = task.prepare(batch, over_all)
        for learner in task.learners:  # one at a time: only its own activations are alive
            with naming(learner.name), learner.shares_gradients(completes):
                with self._autocast():
                    total = learner.learn(partial(task.losses, learner, batch), batch=over_all, step=self.step)
                if completes and (step % self.schedule.log_every == 0 or step == self.schedule.steps):
                    learner.log_training(step)
                with task.naming_failures(learner, batch):
                    torch.autograd.backward(total / self.schedule.accumulate)
                if completes:
                    learner.descend(step)

    @torch.no_grad()  # not inference mode: a sharded model keeps tensors of its first forward for training
    def _validate(self, validation: Iterable[Any]) -> None:
        if not self._validation_due:  # otherwise a resumed run, whose speed line is in the log already
            self._validation_due = True
            self._log_sizes = self._sync_logs()  # what comes before the validation may fail too
            self._log_speed()
            self._log_sizes = self._sync_logs()
        if self._processes.count > 1:
            self._write_checkpoint()  # they cannot stop in a validation, and a launcher kills what takes too long
            self._share_buffers()
        with evaluating(self._models):
            self.task.start_validation()
            for batch in validation:
                self._meter.keep_up()
                if self._stop.asked is not None and self._processes.count == 1:
                    self._write_checkpoint()
                    self._stop_if(self._wish())
                self.task.corrupt.add(batch.corrupt)
                with self._autocast():
                    self.task.validate(to_device(batch, self._device), self.step)
            self.task.end_validation(self.step)
        self._validation_due = False
        self._display.line(self.step, self.task.summary())
        self._save_all(measured=True)

    def _share_buffers(self) -> None:
        """Give all processes the first one's running statistics, which are those that are saved."""
        for learner in self.task.learners:
            for buffer in learner.shared_buffers():
                dist.broadcast(buffer, 0)

    def _terms(self) -> str:
        """The loss term by term or, of several learners, the losses."""
        learners = self.task.learners
        if len(learners) > 1:
            return " ".join(f"{learner.name} {float(learner.figures['train/loss']):.2f}" for learner in learners)
        terms = {k: v for k, v in learners[0].figures.items() if k.startswith("train/") and k != "train/loss"}
        return " ".join(f"{name.removeprefix('train/')} {float(value):.2f}" for name, value in terms.items())

    def _log_speed(self) -> None:
        speed = self._display.lap(self.step)
        for learner in self.task.learners:
            learner.log(speed, self.step)

    def _wish(self) -> Wish:
        """What this process wants to happen after the step."""
        minutes = self.schedule.checkpoint_minutes
        due = minutes is not None and time.perf_counter() - self._saved_at >= 60 * minutes
        return Wish(stop=int(self._stop.asked or 0), checkpoint=due)

    def _stop_if(self, wish: Wish) -> None:
        if wish.stop:
            self._vote.close()
            raise Interrupted(f"stopped at step {self.step}; resume with: {self._resume_with}", wish.signal)

    def _save_what_is_whole(self, error: BaseException) -> None:
        """Keep the work that an error would lose: a checkpoint, if a step had just ended, and a line that says so."""
        if isinstance(error, Interrupted):
            return
        may_save = self.step and self._processes.count == 1 and not isinstance(error, NonFiniteLossError)
        if may_save and self._at_step_end and self._saved_step != self.step:
            try:
                self._write_checkpoint()
            except (UserError, OSError) as failed:  # the error before it is why the run ends
                self._say(f"warning: {failed}")
        kept = "no checkpoint was written" if self._saved_step < 0 else f"the checkpoint is of step {self._saved_step}"
        self._say(f"stopped in step {self.step + 1}; {kept}")

    def _save_all(self, *, measured: bool) -> None:
        """Write a checkpoint and the models' weights."""
        self._write_checkpoint()
        self.task.save(measured=measured)

    def _sync_logs(self) -> list[dict[str, int]]:
        return [folder.sync_logs() for folder in self._folders] if self._processes.first else []

    def _write_checkpoint(self) -> None:
        """Write where the run is; called by all processes at once."""
        for learner in self.task.learners:
            with naming(learner.name):
                learner.check_finite(self.step)
        if not self._validation_due:
            self._log_sizes = self._sync_logs()
        content = {
            RUN: {
                "step": self.step,
                "validation_due": self._validation_due,
                "logs": self._log_sizes,
                "seconds": self.seconds,
                "energy": self._meter.energy,
                "corrupt_images": sorted(set().union(*self._processes.gather(self.task.corrupt.paths))),
                "task": self.task.progress(),
                "learners": [learner.progress() for learner in self.task.learners],
            },
            **kept_state(self._models, self._optimizers, self._processes),
        }
        if self._processes.first:
            self._checkpoints.save(content, self._checkpoints.path(self.step))
            self._checkpoints.prune(self.schedule.keep)
        self._processes.gather(None)
        self._saved_step, self._saved_at = self.step, time.perf_counter()

    def _restore(self, checkpoint: Checkpoint) -> None:
        run = checkpoint.run
        checkpoint.check_fits(self._models)
        restore_state(self._models, self._optimizers, checkpoint.state())
        self.step = self._saved_step = run["step"]
        self._validation_due, self._log_sizes = run["validation_due"], run["logs"]
        self._seconds_before = run["seconds"]
        self._meter.resume(run.get("energy"))
        self.task.corrupt.paths.update(run["corrupt_images"])
        self.task.restore_progress(run["task"])
        for learner, progress in zip(self.task.learners, run["learners"], strict=True):
            learner.restore_progress(progress)
