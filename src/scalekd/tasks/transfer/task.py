"""Base class of the detection and segmentation tasks: one model whose losses are a dictionary."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from scalekd.data import CorruptImages
from scalekd.engine.learner import Learner, StepLosses
from scalekd.engine.task import Task


class TransferTask(Task):
    """Trains and measures one model; subclasses define its losses and figures.

    Args:
        learner: The model in training.
        corrupt: Counter of unreadable images.

    Attributes:
        name: Name of the task on the command line: `scalekd transfer NAME`.
    """

    name: ClassVar[str]

    def __init__(self, learner: Learner, corrupt: CorruptImages) -> None:
        self.learners = (learner,)
        self.corrupt = corrupt

    @property
    def learner(self) -> Learner:
        """The model in training."""
        return self.learners[0]

    @property
    def final(self) -> Any:
        """The model that is measured and saved: the moving average if there is one."""
        return self.learner.final

    def prepare(self, batch: Any, index: int) -> Any:
        return batch

    def losses(self, learner: Learner, batch: Any) -> StepLosses:
        return StepLosses(self.loss_terms(learner.called, batch), {})

    @abstractmethod
    def loss_terms(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Compute the scalar losses of a batch by name; the training loss is their sum."""

    @abstractmethod
    def describe(self) -> str:
        """Return the figures of the last validation as a short text."""

    def summary(self) -> list[str]:
        return [self.describe(), f"loss {float(self.learner.figures['train/loss']):.3f}"]
