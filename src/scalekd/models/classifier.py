"""Any timm classifier, as it is used at inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.models.build import ImageModel


class Classifier(ImageModel):
    """A timm model, images in and logits or features out.

    Args:
        model: A timm name, a weights file written by scalekd, or a timm module.
        weights: A safetensors file for a timm name.
        num_classes: Width of the head; by default the weights' or the architecture's own.
        resolution: Image side in pixels; by default the weights' or the architecture's own.
        pretrained: Whether a name without `weights` loads timm's hub weights.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If the name is unknown or the weights do not fit.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        resolution: int | None = None,
        pretrained: bool = True,
        **model_args: Any,
    ) -> None:
        super().__init__(
            model,
            weights=weights,
            num_classes=num_classes,
            resolution=resolution,
            pretrained=pretrained,
            model_args=model_args,
        )

    def forward(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> logits `[B, K]`."""
        logits: Tensor = self.model(self.prepare(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> what the head's last layer sees, `[B, D]`."""
        features = self.model.forward_features(self.prepare(images))
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        return pooled

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the head by a linear one: `weight` `[K, D]`, `bias` `[K]`."""
        self.model.reset_classifier(len(weight))
        self.num_classes = len(weight)
        head = self.model.get_classifier()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        head.to(self.mean.device)
