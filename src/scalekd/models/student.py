"""The student: both maps and the logits from one forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.method.outputs import MapShape, StudentOutputs
from scalekd.models.build import ImageModel
from scalekd.models.pairing import map_indices, stem_norm


class Student(ImageModel):
    """Any timm model with `forward_intermediates`; unchanged by distillation.

    Args:
        model: A timm name, a weights file written by scalekd, or a timm module.
        num_classes: Width of the head; by default the weights' or the architecture's own.
        weights: A safetensors file to start from.
        resolution: Image side in pixels; by default the architecture's own.
        pretrained: Whether to start from timm's hub weights.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If the name is unknown, the weights do not fit, or the model offers no feature maps.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        num_classes: int | None = None,
        weights: str | Path | None = None,
        resolution: int | None = None,
        pretrained: bool = False,
        **model_args: Any,
    ) -> None:
        super().__init__(
            model,
            weights=weights,
            num_classes=num_classes,
            resolution=resolution,
            pretrained=pretrained,
            **model_args,
        )
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"student: {self.name} offers no feature maps (timm's forward_intermediates)")
        self._indices = map_indices(self.model.feature_info, self.name)
        self.maps = self._measure()
        self.stem_norm = stem_norm(self.model)

    def _measure(self) -> tuple[MapShape, MapShape]:
        """Shapes of the two maps, from one forward of an empty image."""
        training = self.model.training
        with torch.no_grad():
            device = next(self.model.parameters()).device
            outputs = self.eval()(torch.zeros(1, 3, self.resolution, self.resolution, device=device))
        self.train(training)
        return MapShape(*outputs.previous.shape[1:]), MapShape(*outputs.last.shape[1:])

    def forward(self, images: Tensor) -> StudentOutputs:
        """RGB images in [0, 1] `[B, 3, h, w]` -> maps `[B, C3, h3, w3]`, `[B, C4, h4, w4]` and logits `[B, K]`."""
        final, (previous, last) = self.model.forward_intermediates(self.prepare(images), indices=self._indices)
        return StudentOutputs(previous=previous, last=last, logits=self.model.forward_head(final))
