"""What trainings of a detector or segmenter share: one model on batches of images, its losses a dictionary."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from scalekd.data import CorruptImages
from scalekd.engine.learner import Learner, StepLosses
from scalekd.engine.task import Task


class TransferTask(Task):
    """Trains one model and measures it; a task says what its losses and its figures are.

    Attributes:
        name: What the command calls it: `scalekd transfer NAME`.

    Args:
        learner: The model in training.
        corrupt: Counter of unreadable images.
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
        """What is measured and saved: the moving average where there is one."""
        return self.learner.final

    def prepare(self, batch: Any, number: int) -> Any:
        return batch

    def losses(self, learner: Learner, batch: Any) -> StepLosses:
        return StepLosses(self.loss_terms(learner.called, batch), {})

    @abstractmethod
    def loss_terms(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalar losses of a batch by name, which are summed up."""

    @abstractmethod
    def describe(self) -> str:
        """The figures of the last validation, in a few words."""

    def summary(self) -> list[str]:
        return [self.describe(), f"loss {float(self.learner.figures['train/loss']):.3f}"]
