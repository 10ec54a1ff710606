"""Compare an exported model with the original: agreement of the logits, and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two models.

    Attributes:
        images: Number of images compared.
        top1: Percentage of images for which both predict the same class.
        difference: The largest absolute difference of two logits.
        scale: The largest absolute logit, to compare the difference with.
    """

    images: int
    top1: float
    difference: float
    scale: float

    def __str__(self) -> str:
        return (
            f"same top-1 on {self.top1:.1f}% of {self.images} images, largest difference of logits "
            f"{self.difference:.1e} (largest logit {self.scale:.3g})"
        )


@torch.no_grad()
def pixel_agreement(ours: Forward, exported: Forward, pairs: Iterable[tuple[int, Tensor, Tensor]]) -> Agreement:
    """Compare a model on prepared images with one that prepares them itself; `pairs` as from `Images.pairs`."""
    return _agreement([(ours(prepared), exported(whole)) for _, prepared, whole in pairs])


@torch.no_grad()  # not inference mode: models that cache tensors, as LeViT does, could not be exported afterwards
def agreement(ours: Forward, exported: Forward, batches: Iterable[Tensor]) -> Agreement:
    """Compare two models on batches of images `[B, 3, h, w]`, at least one."""
    return _agreement([(ours(batch), exported(batch)) for batch in batches])


def _agreement(logits: Sequence[tuple[Tensor, Tensor]]) -> Agreement:
    wanted, found = (torch.cat(each) for each in zip(*logits, strict=True))
    same = (wanted.argmax(1) == found.argmax(1)).float().mean().item()
    return Agreement(len(wanted), 100 * same, (wanted - found).abs().max().item(), wanted.abs().max().item())


@torch.inference_mode()
def time_ratio(ours: Forward, exported: Forward, images: Tensor, rounds: int = 15) -> float:
    """Return the exported model's time for `images` divided by the original's: the median over alternating rounds."""

    def seconds(forward: Forward) -> float:
        start = time.perf_counter()
        forward(images)
        return time.perf_counter() - start

    for forward in (ours, exported):
        forward(images)
    return statistics.median(seconds(exported) / seconds(ours) for _ in range(rounds))
