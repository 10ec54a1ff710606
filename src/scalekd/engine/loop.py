"""The training loop: batches -> loss -> backward -> step -> log -> checkpoint -> validate, with stop and resume.

All training goes through `Loop.run`. It knows no model and no data: a `Task` computes the loss of a batch, and defines
what is measured and what is saved.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scalekd.energy import EnergyMeter
from scalekd.engine.context import RunContext
from scalekd.engine.display import Display
from scalekd.engine.learner import NonFiniteLossError
from scalekd.engine.modes import evaluating
from scalekd.engine.processes import Request, Vote
from scalekd.engine.sharding import kept_state, restore_state
from scalekd.engine.task import Task
from scalekd.errors import Interrupted, UserError
from scalekd.hardware import Compute, to_device
from scalekd.runs.checkpoints import RUN, Checkpoint
from scalekd.runs.folder import ENDED_EARLY
from scalekd.runs.group import naming


@dataclass(frozen=True)
class LoopSettings:
    """The length of a run, and the steps at which it logs, validates and saves.

    Attributes:
        steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps per epoch.
        batch: Images per optimiser step, over all processes.
        accumulate: Micro-batches per optimiser step in each process.
        validate_every: Steps between validations, or between checkpoints if nothing is validated; the last step is
            always validated and saved.
        log_every: Steps between log lines; the last step is always logged, unless the run ends early.
        checkpoint_minutes: Minutes after which a checkpoint is also written between validations; None for never.
        keep: Number of checkpoints to keep.
    """

    steps: int
    steps_per_epoch: int
    batch: int
    accumulate: int
    validate_every: int
    log_every: int
    checkpoint_minutes: float | None
    keep: int


def resume_command(command: str, output: Path) -> str:
    """Return the command that resumes a run in `output`; `command` is `distill`, for example."""
    return f"scalekd {command} --resume --output {shlex.quote(str(output))}"


class Loop:
    """Trains a task to its last step, and writes the checkpoints from which a run can be resumed.

    A checkpoint holds the state at the end of an optimiser step. If it is written during a validation, it records that,
    and a run resumed from it begins with that validation.

    Args:
        task: What is trained.
        settings: Length of the run, and when it logs, validates and saves.
        context: Folders, processes, signals and console of the run.
        compute: Where and in which number format the models are trained.
        resume_with: What resumes the run, for the message when it is stopped (see `resume_command`).

    Attributes:
        step: Optimiser steps taken.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        context: RunContext,
        *,
        compute: Compute,
        resume_with: str,
    ) -> None:
        self.task, self.settings, self.step = task, settings, 0
        self._folders, self._checkpoints = context.group.runs, context.group.checkpoints
        self._stop, self._processes, self._say = context.stop, context.processes, context.say
        self._compute = compute
        self._display = Display(
            context.console, batch=settings.batch, steps=settings.steps, steps_per_epoch=settings.steps_per_epoch
        )
        gpus = context.processes.local_count if compute.device.type == "cuda" else 0
        self._meter = EnergyMeter(gpus)  # counts from this start; `resume` adds earlier energy
        self._resume_with = resume_with
        self._learners = nn.ModuleList(task.learners)
        self._optimizers = [learner.optimizer for learner in task.learners]
        self._vote = Vote(context.processes)
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._saved_time = self._started
        self._saved_step: int | None = None  # of the last checkpoint; None if there is none
        self._at_step_end = True  # whether the models are in the state at the end of a step
        self._validation_due = False  # whether the validation of this step has begun but not ended
        self._log_sizes: list[dict[str, int]] = []

    @property
    def seconds(self) -> float:
        """Training time of the run in seconds, including earlier starts."""
        return self._seconds_before + time.perf_counter() - self._started

    def run(
        self,
        batches_from: Callable[[int], Iterable[Any]],
        validation: Iterable[Any] | None,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, Any]:
        """Train to the last step, and save the final models.

        Args:
            batches_from: Returns the training micro-batches of this process, starting with the one of the given index.
            validation: The validation batches; None if nothing is validated.
            checkpoint: The checkpoint to resume from, if any.

        Returns:
            The training's part of the result: samples, steps, seconds, energy, unreadable images.

        Raises:
            Interrupted: If a signal stopped the run; a checkpoint is written, unless a second signal ends it at once.
            UserError: If training fails; a checkpoint is written if a step had just ended, the loss is finite and there
                is only one process.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        self._processes.wait()
        self._processes.training = self._stop.polled = True
        try:
            if self._validation_due and validation is not None:
                self._validate(validation)
            self._display.start(self.step)
            if self.step < self.settings.steps and not self.task.ends_early():
                self._train(batches_from(self.step * self.settings.accumulate), validation)
            self._vote.close()
            if self.step < self.settings.steps:
                self._say(f"ended     after step {self.step} of {self.settings.steps}: {self.task.ends_early()}")
        except BaseException as error:
            self._save_after_error(error)
            # After a signal the run was about to stop, and the error may be a consequence of the signal: exit with it.
            if isinstance(error, UserError) and self._stop.asked is not None:
                raise Interrupted(f"stopped by {self._stop.asked.name}, while: {error}", self._stop.asked) from error
            raise
        finally:
            self._stop.polled = False
            self._display.close()
        unreadable = set().union(*self._processes.gather(self.task.corrupt.paths))
        result = {
            "samples": self.step * self.settings.batch,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "energy": self._meter.energy,
            "corrupt_images": sorted(unreadable),
            **({ENDED_EARLY: True} if self.step < self.settings.steps else {}),
        }
        self.task.save(measured=validation is not None)
        self._processes.wait()
        self._processes.training = False
        return result

    def _train(self, batches: Iterable[Any], validation: Iterable[Any] | None) -> None:
        settings = self.settings
        for index, batch in enumerate(self._display.timed(batches), start=self.step * settings.accumulate):
            ends_step = (index + 1) % settings.accumulate == 0
            self._at_step_end = False
            self._meter.poll()
            self._learn(batch, index, ends_step)
            if not ends_step:
                continue
            self.step += 1
            self._at_step_end = True
            self._display.advance(self.step, self._terms)
            request = self._vote.cast(self._request())  # of the previous step if there are several processes
            due = self.step % settings.validate_every == 0 or self.step == settings.steps
            if due and validation is not None:
                self._validate(validation)
                request = max(self._processes.gather(self._request()))
            elif due:
                self._log_speed()
                self._display.line(self.step, self.task.summary())
                self._save_checkpoint_and_weights(measured=False)
            elif request.stop:
                self._save_checkpoint_and_weights(measured=False)
            elif request.checkpoint and self._saved_step != self.step - 1:  # the step that requested it may be saved
                self._write_checkpoint()
            self._stop_if(request)
            if self.step == settings.steps or (due and self.task.ends_early()):
                return

    def _learn(self, batch: Any, index: int, ends_step: bool) -> None:
        """Train on one micro-batch: losses and gradients of each learner, and the step if the micro-batch ends it."""
        task, step = self.task, self.step + 1
        task.corrupt.add(batch.corrupt)
        global_index = index * self._processes.count + self._processes.rank
        batch = to_device(batch, self._compute.device)
        with self._compute.autocast():
            batch = task.prepare(batch, global_index)
        for learner in task.learners:  # one at a time, so that only one learner's activations are in memory
            with naming(learner.name), learner.gradient_sync(ends_step):
                with self._compute.autocast():
                    loss = learner.compute_loss(partial(task.losses, learner, batch), index=global_index, step=step)
                if ends_step and (step % self.settings.log_every == 0 or step == self.settings.steps):
                    learner.log_training(step)
                with task.naming_failures(learner, batch):
                    torch.autograd.backward(loss / self.settings.accumulate)
                if ends_step:
                    learner.optimizer_step(step)

    @torch.no_grad()  # not inference mode: a sharded model keeps tensors of its first forward for training
    def _validate(self, validation: Iterable[Any]) -> None:
        if not self._validation_due:  # otherwise this is a resumed run, whose speed is already in the log
            self._validation_due = True
            self._log_sizes = self._sync_logs()  # for a checkpoint after a failure to log
            self._log_speed()
            self._log_sizes = self._sync_logs()
        if self._processes.count > 1:
            # Several processes cannot stop within a validation, and the launcher kills them if they take too long.
            self._write_checkpoint()
            self._share_buffers()
        with evaluating(self._learners):
            self.task.start_validation()
            for batch in validation:
                self._meter.poll()
                if self._stop.asked is not None and self._processes.count == 1:
                    self._write_checkpoint()
                    self._stop_if(self._request())
                self.task.corrupt.add(batch.corrupt)
                with self._compute.autocast():
                    self.task.validate(to_device(batch, self._compute.device), self.step)
            self.task.end_validation(self.step)
        self._validation_due = False
        self._display.line(self.step, self.task.summary())
        self._save_checkpoint_and_weights(measured=True)

    def _share_buffers(self) -> None:
        """Copy the first process's running statistics to all processes, because those are the ones saved."""
        for learner in self.task.learners:
            for buffer in learner.shared_buffers():
                dist.broadcast(buffer, 0)

    def _terms(self) -> str:
        """Format the loss term by term or, with several learners, the loss of each."""
        learners = self.task.learners
        if len(learners) > 1:
            return " ".join(f"{learner.name} {float(learner.figures['train/loss']):.2f}" for learner in learners)
        terms = {k: v for k, v in learners[0].figures.items() if k.startswith("train/") and k != "train/loss"}
        return " ".join(f"{name.removeprefix('train/')} {float(value):.2f}" for name, value in terms.items())

    def _log_speed(self) -> None:
        speed = self._display.lap(self.step)
        for learner in self.task.learners:
            learner.log(speed, self.step)

    def _request(self) -> Request:
        """Return this process's request after a step: whether to stop, and whether a checkpoint is due."""
        minutes = self.settings.checkpoint_minutes
        due = minutes is not None and time.perf_counter() - self._saved_time >= 60 * minutes
        return Request(stop=int(self._stop.asked or 0), checkpoint=due)

    def _stop_if(self, request: Request) -> None:
        if request.stop:
            self._vote.close()
            raise Interrupted(f"stopped at step {self.step}; resume with: {self._resume_with}", request.signal)

    def _save_after_error(self, error: BaseException) -> None:
        """After an error, write a checkpoint if a step had just ended, and report which checkpoint is the last one."""
        if isinstance(error, Interrupted):
            return
        may_save = self.step and self._processes.count == 1 and not isinstance(error, NonFiniteLossError)
        if may_save and self._at_step_end and self._saved_step != self.step:
            try:
                self._write_checkpoint()
            except (UserError, OSError) as failed:  # only a warning: the original error is the one to raise
                self._say(f"warning: {failed}")
        saved = self._saved_step
        remark = "no checkpoint was written" if saved is None else f"the checkpoint is of step {saved}"
        where = f"after step {self.step}" if self._at_step_end else f"in step {self.step + 1}"
        self._say(f"stopped {where}; {remark}")

    def _save_checkpoint_and_weights(self, *, measured: bool) -> None:
        """Write a checkpoint and the models' weights."""
        self._write_checkpoint()
        self.task.save(measured=measured)

    def _sync_logs(self) -> list[dict[str, int]]:
        return [folder.sync_logs() for folder in self._folders] if self._processes.first else []

    def _write_checkpoint(self) -> None:
        """Write a checkpoint of the current step; called by all processes together."""
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
                "task": self.task.checkpoint_state(),
                "learners": [learner.checkpoint_state() for learner in self.task.learners],
            },
            **kept_state(self._learners, self._optimizers, self._processes),
        }
        if self._processes.first:
            self._checkpoints.save(content, self._checkpoints.path(self.step))
            self._checkpoints.prune(self.settings.keep)
        self._processes.wait()
        self._saved_step, self._saved_time = self.step, time.perf_counter()

    def _restore(self, checkpoint: Checkpoint) -> None:
        run = checkpoint.run
        checkpoint.check_fits(self._learners)
        restore_state(self._learners, self._optimizers, checkpoint.state())
        self.step = self._saved_step = run["step"]
        self._validation_due, self._log_sizes = run["validation_due"], run["logs"]
        self._seconds_before = run["seconds"]
        self._meter.resume(run.get("energy"))
        self.task.corrupt.paths.update(run["corrupt_images"])
        self.task.restore_checkpoint_state(run["task"])
        for learner, state in zip(self.task.learners, run["learners"], strict=True):
            learner.restore_checkpoint_state(state)
            learner.schedule.step_update(num_updates=self.step)  # of the run's length now, which may be another
