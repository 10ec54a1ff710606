"""What the training loop asks of whatever it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from scalekd.data import CorruptImages
from scalekd.engine.learner import Learner, StepLosses


class Task(ABC):
    """One model, or several on the same batches: what the loss of a batch is, what is measured, what is saved.

    Attributes:
        learners: The models in training.
        corrupt: Counter of unreadable images.
    """

    learners: Sequence[Learner]
    corrupt: CorruptImages

    @abstractmethod
    def prepare(self, batch: Any, number: int) -> Any:
        """A training batch as all learners see it, given on the device.

        Args:
            batch: From the training loader.
            number: Number of the micro-batch in the run, over all processes; what is random is drawn from it.
        """

    @abstractmethod
    def losses(self, learner: Any, batch: Any) -> StepLosses:
        """The losses of a learner on what `prepare` gave."""

    def naming_failures(self, learner: Any, batch: Any) -> AbstractContextManager[Any]:
        """What a backward runs in, so that an error of a model's own code names the model."""
        return nullcontext()

    @abstractmethod
    def start_validation(self) -> None:
        """Forget the images of the validation before."""

    @abstractmethod
    def validate(self, batch: Any, step: int) -> None:
        """Measure the learners' final models on a validation batch, given on the device."""

    @abstractmethod
    def end_validation(self, step: int) -> None:
        """Work out the figures of a validation and log them."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Loss and figures of the last validation, in a few words each, for the console."""

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds of the task itself, as plain values."""
        return {}

    def restore_progress(self, progress: dict[str, Any]) -> None:  # noqa: B027  # most tasks have nothing to restore
        """Take back what `progress` gave."""

    @abstractmethod
    def save(self, *, measured: bool) -> None:
        """Write the final models; called by all processes at once.

        Args:
            measured: Whether the last validation was of these weights.
        """
