"""The interface between the training loop and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from scalekd.data import CorruptImages
from scalekd.engine.learner import Learner, StepLosses


class Task(ABC):
    """What a run trains: one or several models on the same batches, their losses, their validation and their saving.

    Attributes:
        learners: The models in training.
        corrupt: Counter of unreadable images.
    """

    learners: Sequence[Learner]
    corrupt: CorruptImages

    @abstractmethod
    def prepare(self, batch: Any, index: int) -> Any:
        """Prepare a training batch, already on the device, for all learners.

        Args:
            batch: From the training loader.
            index: Index of the micro-batch in the run, over all processes; random draws are seeded with it.
        """

    @abstractmethod
    def losses(self, learner: Any, batch: Any) -> StepLosses:
        """Compute the losses of a learner on a batch that `prepare` returned."""

    def naming_failures(self, learner: Any, batch: Any) -> AbstractContextManager[Any]:
        """Return the context in which the backward runs, so that errors in a model's own code name the model."""
        return nullcontext()

    @abstractmethod
    def start_validation(self) -> None:
        """Reset the metrics of the previous validation."""

    @abstractmethod
    def validate(self, batch: Any, step: int) -> None:
        """Measure the learners' final models on a validation batch, already on the device."""

    @abstractmethod
    def end_validation(self, step: int) -> None:
        """Compute the figures of a validation and log them."""

    def ends_early(self) -> str:
        """Return why the run should end after its last validation, for the user; empty if it should not."""
        return ""

    @abstractmethod
    def summary(self) -> list[str]:
        """Return loss and figures of the last validation as short texts for the console."""

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the task's own state for a checkpoint, as plain values."""
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:  # noqa: B027  # most tasks have nothing to restore
        """Restore the state that `checkpoint_state` returned."""

    @abstractmethod
    def save(self, *, measured: bool) -> None:
        """Write the final models; called by all processes together.

        Args:
            measured: Whether the last validation measured these weights.
        """
