"""The student model, which returns two feature maps and the logits from one forward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.methods.outputs import MapShape, StudentOutputs
from scalekd.models.failure import ModelError, kind_and_line
from scalekd.models.image_model import ImageModel
from scalekd.models.maps import IntermediatesReader, ModuleReader, Reader, candidates
from scalekd.models.pairing import check_indices, map_indices, stem_norm


class Student(ImageModel):
    """A model that gives two feature maps and logits; its architecture is not changed by distillation.

    It is any timm model with `forward_intermediates`, or any module with two named submodules that give the maps.
    Weights with another number of classes than `num_classes`, or without a head, are used with a new random head.

    Args:
        model: A timm name, `torchvision:NAME`, `python:module.callable`, a weights file of scalekd, or a module.
        maps: S_prev and S_last: indices of a timm model's maps, or names of submodules (see `ModuleReader` for their
            possible outputs). By default chosen for timm models as in the paper (see `map_indices`).
        num_classes: Width of the head; by default that of the weights or the architecture.
        weights: A safetensors file to start from.
        resolution: Image side in pixels; by default that of the weights or the architecture. Images of another size
            are resized to it, with a warning if it was not specified.
        pretrained: Whether to start from the hub's weights.
        model_args: Further arguments of `timm.create_model`, or of whatever else builds the model.

    Attributes:
        maps: Shapes of (S_prev, S_last).
        maps_reason: Which maps these are and why, human-readable.
        stem_norm: Norm of CAP's stem for this student.

    Raises:
        UserError: If the name is unknown, the weights do not fit, or the model gives no such maps or no logits.
    """

    takes_fresh_head = True

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        maps: Sequence[int | str] | None = None,
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
        self._reader, self.maps_reason = self._choose_reader(maps)
        self.maps = self._measure()
        self.stem_norm = stem_norm(self.model)

    def _choose_reader(self, maps: Sequence[int | str] | None) -> tuple[Reader, str]:
        if maps is not None and len(maps) != 2:
            raise UserError(f"student_maps: two are needed, S_prev and S_last, not {len(maps)}")
        names = [str(name) for name in maps or ()]
        if names and any(not isinstance(name, int) for name in maps or ()):
            return ModuleReader(self.model, names, self.name), f"as named: {names[0]} and {names[1]}"
        if not hasattr(self.model, "forward_intermediates"):
            found = candidates(self.model.eval(), self.prepare(self._blank()))
            raise UserError(
                f"student_maps: specify the two modules of {self.name} that give S_prev and S_last; "
                f"candidates: {', '.join(found) or 'none'}"
            )
        if maps is None:
            indices, reason = map_indices(self.model.feature_info, self.name)
            return IntermediatesReader(self.model, indices), reason
        indices = [int(index) for index in maps]
        check_indices(indices, self.model.feature_info, self.name)
        return IntermediatesReader(self.model, indices), f"as given: maps {indices[0]} and {indices[1]}"

    def _blank(self) -> Tensor:
        """Return one blank image of this student's size."""
        parameter = next(self.model.parameters())
        return torch.zeros(1, 3, self.resolution, self.resolution, device=parameter.device)

    def _measure(self) -> tuple[MapShape, MapShape]:
        """Measure the maps' shapes in a forward of a blank image; also sets the number of classes if unknown."""
        training = self.model.training
        try:
            with torch.no_grad():
                outputs = self.eval()(self._blank())
        except ModelError as error:
            raise self._reason(error) from error
        self.train(training)
        if outputs.previous.shape[2] < outputs.last.shape[2]:
            raise UserError(
                f"student_maps: S_prev ({list(outputs.previous.shape[1:])}) has a smaller grid than S_last "
                f"({list(outputs.last.shape[1:])}); specify the earlier map first"
            )
        if not hasattr(self.model, "num_classes") and self._head_width is None:
            self.num_classes = outputs.logits.shape[1]
        return MapShape(*outputs.previous.shape[1:]), MapShape(*outputs.last.shape[1:])

    def _reason(self, error: ModelError) -> UserError:
        """Return the error for a student that failed on an image.

        The resolution is blamed if the student was built for it, or works at its default resolution.
        """
        own = timm.data.resolve_model_data_config(self.model)["input_size"]
        if own[0] != 3:
            return UserError(f"student: {self.name} takes images of {own[0]} channel(s); build it for 3 (in_chans: 3)")
        if "img_size" not in self.model_args:
            try:
                with torch.no_grad():
                    self.model(torch.zeros(1, *own, device=self.mean.device))
            except Exception:  # it fails at its default resolution, too
                return error
        reason = kind_and_line(error.__cause__ or error)
        return UserError(f"resolution: {self.name} cannot run on images of {self.resolution} pixels: {reason}")

    def prepare(self, images: Tensor) -> Tensor:
        """Prepare images as `ImageModel.prepare` does; warns if they are resized and no resolution was chosen."""
        height, width = images.shape[-2:]
        if not self.resolution_given and (height, width) != (self.resolution, self.resolution):
            warnings.warn(
                f"student: images of {height}x{width} pixels are resized to the {self.resolution} that {self.name} "
                f"runs at by default; pass Student(..., resolution={min(height, width)}) to train at their size, or "
                f"resolution={self.resolution} to resize them",
                stacklevel=2,
            )
        return super().prepare(images)

    def forward(self, images: Tensor) -> StudentOutputs:
        """Map RGB images in [0, 1] `[B, 3, h, w]` to maps `[B, C3, h3, w3]`, `[B, C4, h4, w4]` and logits `[B, K]`."""
        return self.run("student", self._reader, images)
