"""A model in training with its own optimiser, schedule, moving average and logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scalekd.data import seeded
from scalekd.engine.optimisation import LearnerKeys
from scalekd.engine.processes import Processes
from scalekd.engine.sharding import own_part
from scalekd.engine.skipping import IN_A_ROW, Skipper
from scalekd.errors import UserError
from scalekd.runs.logs import MetricsLog

ADVICE = "A lower lr, a longer warm-up or clip usually fixes it"


class NonFiniteLossError(UserError):
    """A loss term, or a weight of the model, became NaN or infinite."""


class StepLosses(NamedTuple):
    """The losses of one micro-batch.

    Attributes:
        terms: Scalar loss terms by name, already weighted; their sum is minimised.
        figures: Further scalars to log, by full name (`cosine/...`).
    """

    terms: dict[str, Tensor]
    figures: dict[str, Tensor]


class Learner(nn.Module):
    """One model in training, with its optimiser, schedule, moving average, figures and logs.

    Args:
        model: The model to train, on its device; contains no teacher.
        kept: The part of `model` that is evaluated and saved (`model` itself, or a method's student).
        keys: The recipe's keys `seed`, `clip` and `nonfinite`.
        optimizer: Optimises the model's trainable parameters.
        schedule: A timm schedule that is stepped once per optimiser step.
        average: Moving average of `kept`, if any.
        called: The module that the task calls: `model`, or its DDP wrapper if several processes train it.
        processes: The processes that train it together.
        context: The context in which each training forward runs (see `batchnorm_over`).
        logs: Where its figures are written.
        name: Its name if the run has several learners; empty if it is the only one.
        role: What messages call it: `student` or `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        kept: nn.Module,
        *,
        keys: LearnerKeys,
        optimizer: Optimizer,
        schedule: Scheduler,
        average: ModelEmaV3 | None = None,
        called: nn.Module | None = None,
        processes: Processes | None = None,
        context: AbstractContextManager[Any] | None = None,
        logs: Sequence[MetricsLog] = (),
        name: str = "",
        role: str = "model",
    ) -> None:
        super().__init__()
        self._role = role
        self.model, self.ema, self.name = model, average, name
        self.keys, self.optimizer, self.schedule = keys, optimizer, schedule
        self.processes, self.logs = processes or Processes(), tuple(logs)
        self._context = context or nullcontext()
        # In a tuple, so that the module is registered only once, as `model`, not under three names.
        self._others = kept, called or model
        # The current step (None before the first), and losses and cosines of each of its micro-batches.
        self._parts: tuple[int | None, list[dict[str, Tensor]]] = (None, [])
        self._rest: dict[str, float] = {}  # figures that do not belong to a batch: learning rate, accuracies
        # The last loss until it is checked: its step, whether it is finite, and the event after which that is known.
        self._unchecked: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._skipper = Skipper(model) if keys.nonfinite == "skip" else None
        self._gradients_finite = True  # whether the last step's gradients were finite

    @property
    def called(self) -> nn.Module:
        """The model as the task calls it in training."""
        return self._others[1]

    @property
    def final(self) -> Any:
        """The model that is evaluated and saved: the moving average if there is one."""
        return self._others[0] if self.ema is None else self.ema.module

    @property
    def learning_rate(self) -> float:
        """The model's learning rate (a student's, without projectors) in the step in progress."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def figures(self) -> dict[str, Any]:
        """The latest value of each figure; losses and cosines are means over the step's images in this process."""
        parts = self._parts[1]
        means = dict(parts[0]) if parts else {}
        if len(parts) > 1:
            means = {name: torch.stack([part[name] for part in parts]).mean() for name in means}
        return self._rest | means

    @property
    def skipped_steps(self) -> int:
        """Number of steps that were skipped because their gradients were NaN or infinite."""
        return 0 if self._skipper is None else self._skipper.skipped

    def checkpoint_state(self) -> dict[str, Any]:
        """Return this learner's state for a checkpoint, apart from its tensors."""
        skipper = self._skipper
        return {
            "figures": {name: float(value) for name, value in self.figures.items()},
            "skipped": None if skipper is None else [skipper.skipped, skipper.in_a_row],
        }

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `checkpoint_state` returned."""
        self._rest = dict(state["figures"])
        if self._skipper is not None:
            self._skipper.skipped, self._skipper.in_a_row = state["skipped"]

    def gradient_sync(self, ends_step: bool) -> AbstractContextManager[Any]:
        """Return the context for forward and backward, in which DDP averages gradients only if the step ends.

        Args:
            ends_step: Whether the micro-batch is the last one of its step.
        """
        called = self.called
        return called.no_sync() if isinstance(called, DistributedDataParallel) and not ends_step else nullcontext()

    def compute_loss(self, losses: Callable[[], StepLosses], *, index: int, step: int) -> Tensor:
        """Compute the loss of a micro-batch, the sum of its terms.

        Args:
            losses: Runs the model on the micro-batch.
            index: Index of the micro-batch in the run, over all processes.
            step: The step in progress, counted from 1.

        Raises:
            NonFiniteLossError: If the loss of the previous micro-batch is NaN or infinite; names the terms.
        """
        if self._parts[0] != step:
            self._parts = step, []
            if self._skipper is not None:
                self._skipper.begin()
        # Dropout, drop path and sampled boxes draw from (seed, index), so that a resumed run draws the same numbers.
        with seeded(self.keys.seed, index), self._context:
            terms, figures = losses()
        loss = torch.stack(list(terms.values())).sum()
        finite = torch.isfinite(loss.detach()).to("cpu", non_blocking=True)  # copied while the GPU continues
        known = torch.cuda.Event() if loss.is_cuda else None  # type: ignore[no-untyped-call]
        if known is not None:
            known.record()
        self._check_loss()
        detached = {f"train/{name}": value.detach() for name, value in terms.items()}
        self._parts[1].append({"train/loss": loss.detach(), **detached, **figures})
        self._unchecked = (step, finite, known) if self._skipper is None else None
        return loss

    def optimizer_step(self, step: int) -> None:
        """Take optimiser step number `step` with the accumulated gradients, and advance the schedule.

        Raises:
            NonFiniteLossError: If the gradients of too many steps in a row were not finite.
        """
        self._drop_bad_gradients(step)
        if self.keys.clip is not None:
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.keys.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None and self._gradients_finite:
            self.ema.update(self._others[0])
        self.schedule.step_update(num_updates=step)

    def _drop_bad_gradients(self, step: int) -> None:
        """Discard the gradients of a step if they are not finite and the recipe says to skip such steps."""
        self._gradients_finite = self._skipper is None or not self._skipper.look()
        if self._skipper is None or self._gradients_finite:
            return
        self.log({"skipped_steps": self._skipper.skipped}, step)
        if self._skipper.in_a_row == IN_A_ROW:
            raise NonFiniteLossError(
                f"loss: the gradients of {IN_A_ROW} steps in a row were NaN or infinite, the last of step {step}; "
                f"the last checkpoint is kept. {ADVICE}"
            )

    def _check_loss(self) -> None:
        """Check the loss of the previous micro-batch once; waits only for that forward, which has long finished."""
        pending, self._unchecked = self._unchecked, None
        if pending is None:
            return
        step, finite, known = pending
        if known is not None:
            known.synchronize()
        if finite:
            return
        figures = self.figures
        loss = figures["train/loss"]
        values = {name.removeprefix("train/"): value for name, value in figures.items() if "train/" in name}
        bad = [name for name, value in values.items() if name != "loss" and not torch.isfinite(value)]
        raise NonFiniteLossError(
            f"loss: {', '.join(bad) or 'the sum of all terms'} became {loss.item()} at step {step}; "
            f"the last checkpoint is kept. {ADVICE}"
        )

    def check_finite(self, step: int) -> None:
        """Check that the last loss and all parameters are finite, before they are saved.

        Raises:
            NonFiniteLossError: If the last loss or a parameter is NaN or infinite; names it.
        """
        self._check_loss()
        for name, parameter in self.final.named_parameters():
            if not torch.isfinite(own_part(parameter)).all():
                raise NonFiniteLossError(
                    f"{self._role}: {name} became NaN or infinite by step {step}; the last checkpoint is kept. {ADVICE}"
                )

    def log_training(self, step: int) -> None:
        """Log losses (means over all images of the step) and the learning rate.

        Raises:
            NonFiniteLossError: If the last loss is NaN or infinite; names the terms.
        """
        self._check_loss()
        figures = self.figures
        names = [name for name in figures if name.startswith(("train/", "cosine/"))]
        means = self.processes.mean(torch.stack([figures[name].float() for name in names]))
        self._parts = self._parts[0], [dict(zip(names, means.unbind(), strict=True))]
        self._rest["lr"] = self.learning_rate
        self.log({name: value for name, value in self.figures.items() if not name.startswith("val/")}, step)

    def log_validation(self, figures: dict[str, float], step: int) -> None:
        """Log the figures of a validation, by full name (`val/...`), and keep them."""
        self._rest |= figures
        self.log(figures, step)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Write the finite values to the logs (JSON has no NaN)."""
        numbers = {name: float(value) for name, value in values.items()}
        for log in self.logs if self.processes.first else ():
            log.write({name: value for name, value in numbers.items() if math.isfinite(value)}, step)

    def shared_buffers(self) -> Iterator[Tensor]:
        """Yield the buffers of the model and its average, such as running statistics; the first process's are saved."""
        yield from self.model.buffers()
        if self.ema is not None:
            yield from self.ema.buffers()
