"""Any timm classifier, as it is used at inference."""

from __future__ import annotations

import torch
from torch import Tensor

from scalekd.errors import UserError
from scalekd.models.build import ImageModel


class Classifier(ImageModel):
    """A timm model, images in and logits or features out; for its arguments see `ImageModel`."""

    def forward(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> logits `[B, K]`."""
        logits: Tensor = self.run("model", self.model, images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """RGB images in [0, 1] `[B, 3, h, w]` -> what the head's last layer sees, `[B, D]`.

        Raises:
            UserError: If the model is none of timm's.
        """
        if not hasattr(self.model, "forward_head"):
            raise UserError(f"model: {self.name} gives no features as timm models do; only its logits can be measured")
        features = self.run("model", self.model.forward_features, images)
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
