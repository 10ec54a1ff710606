"""Interfaces of teacher and student as the methods use them, and the losses that a method returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class MapShape:
    """Shape of a feature map without its batch axis.

    Attributes:
        channels: Number of channels `C` per position.
        height: Rows of the grid.
        width: Columns of the grid.
    """

    channels: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Number of grid positions, `height * width`."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"


class TeacherOutputs(NamedTuple):
    """Outputs of a teacher forward: final tokens `T` `[B, N, D]`, and logits `[B, K]`; None without a head."""

    tokens: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class StudentOutputs:
    """Outputs of a student forward: maps `[B, C3, h3, w3]` and `[B, C4, h4, w4]`, logits `[B, K]`."""

    previous: Tensor
    last: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Losses:
    """The loss of a batch, term by term.

    Attributes:
        terms: Scalar loss terms by name, weights already applied.
        cosines: Mean teacher-student cosine of each feature term (detached); 1 means the same direction.
        student_logits: `[B, K]`.
    """

    terms: dict[str, Tensor]
    cosines: dict[str, Tensor]
    student_logits: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of all terms, the scalar to call `backward` on."""
        return torch.stack(list(self.terms.values())).sum()


class TeacherLike(Protocol):
    """Interface of the frozen teacher; `scalekd.Teacher` implements it."""

    num_classes: int

    @property
    def tokens(self) -> MapShape:
        """Final tokens: grid `H x W`, width `D`."""
        ...

    @property
    def tail_input(self) -> MapShape:
        """Input tokens of `tail`: grid `H' x W'`, width `D'`."""
        ...

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads of (CAP_prev, CAP_last) in the paper's settings for this teacher."""
        ...

    @property
    def tail_name(self) -> str:
        """Human-readable description of `tail`."""
        ...

    def tail(self, tokens: Tensor) -> Tensor:
        """Last stage and final norm, `[B, N', D'] -> [B, N, D]`, differentiable in its input."""
        ...

    def __call__(self, images: Tensor) -> TeacherOutputs: ...


class StudentLike(Protocol):
    """Interface of the trained student; `scalekd.Student` implements it."""

    num_classes: int

    @property
    def maps(self) -> Sequence[MapShape]:
        """Shapes of (S_prev, S_last)."""
        ...

    @property
    def maps_reason(self) -> str:
        """Human-readable description of the maps and why they were chosen."""
        ...

    @property
    def stem_norm(self) -> str:
        """`batchnorm`, or `layernorm2d` for students whose own norm is a channel LayerNorm."""
        ...

    def __call__(self, images: Tensor) -> StudentOutputs: ...
