"""Training branches of reparameterisable students (RepVGG, MobileOne, FastViT, ...) folded into plain layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from scalekd.errors import first_line
from scalekd.export.compare import agreement
from scalekd.models import Classifier

# Rounding of float32 stays far below this share of the largest logit, a wrong fold far above it.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Folded:
    """What is exported of a student.

    Attributes:
        classifier: The folded copy; the student itself where there is nothing to fold, or where folding fails.
        told: A sentence on what was folded, or why nothing was; empty for a student without such branches.
    """

    classifier: Classifier
    told: str


@torch.no_grad()  # tensors of inference mode could not be exported
def fold(classifier: Classifier, images: Iterable[Tensor]) -> Folded:
    """Fold branches and batch norms as timm's `reparameterize_model` does, on a copy.

    Args:
        classifier: The student, in eval mode; it keeps its branches.
        images: Batches `[B, 3, h, w]` that both must agree on: logits within a thousandth of the largest one.
    """
    try:
        folded: Classifier = reparameterize_model(classifier).eval()
        if _names(folded) == _names(classifier):
            return Folded(classifier, "")
        found = agreement(classifier, folded, images)
    except Exception as error:  # a module of the user's own may name something else `fuse`
        return Folded(classifier, f"nothing: timm cannot fold {classifier.name} ({first_line(error)})")
    if not found.difference <= _TOLERANCE * found.scale:  # not a number is no agreement either
        return Folded(classifier, f"nothing: folded by timm, {classifier.name} answers differently ({found})")
    before, after = _layers(classifier), _layers(folded)
    return Folded(folded, f"{before} convolutions and norms into {after}, largest difference {found.difference:.1e}")


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_modules()} | model.state_dict().keys()


def _layers(model: nn.Module) -> int:
    """How many convolutions and batch norms a model has."""
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return sum(isinstance(module, kinds) for module in model.modules())
