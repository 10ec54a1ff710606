"""Fold the training branches of reparameterisable students (RepVGG, MobileOne, FastViT, ...) into plain layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from scalekd.errors import first_line
from scalekd.exports.compare import agreement
from scalekd.models import Classifier

# As a fraction of the largest logit: float32 rounding stays far below it, a wrong fold far above it.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Folded:
    """The model to export for a student.

    Attributes:
        classifier: The folded copy; the student itself if there is nothing to fold, or if folding fails.
        note: A text on what was folded, or why nothing was; empty for a student without such branches.
    """

    classifier: Classifier
    note: str


@torch.no_grad()  # tensors of inference mode could not be exported
def fold(classifier: Classifier, images: Iterable[Tensor]) -> Folded:
    """Fold branches and batch norms in a copy of the student, with timm's `reparameterize_model`.

    Args:
        classifier: The student, in eval mode; it keeps its branches.
        images: Batches `[B, 3, h, w]` on which both must agree: logits within a thousandth of the largest one.
    """
    try:
        folded: Classifier = reparameterize_model(classifier).eval()
        if _names(folded) == _names(classifier):
            return Folded(classifier, "")
        found = agreement(classifier, folded, images)
    except Exception as error:  # a user's own module may have an unrelated method `fuse`
        return Folded(classifier, f"nothing: timm cannot fold {classifier.name} ({first_line(error)})")
    if not found.difference <= _TOLERANCE * found.scale:  # written so that NaN is not agreement either
        return Folded(classifier, f"nothing: folded by timm, {classifier.name} gives other logits ({found})")
    before, after = _layers(classifier), _layers(folded)
    return Folded(folded, f"{before} convolutions and norms into {after}, largest difference {found.difference:.1e}")


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_modules()} | model.state_dict().keys()


def _layers(model: nn.Module) -> int:
    """Count the convolutions and batch norms of a model."""
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return sum(isinstance(module, kinds) for module in model.modules())
