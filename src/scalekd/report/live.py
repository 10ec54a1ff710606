"""Computes the report's figures (attention, spectrum, distances) during training, for TensorBoard."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scalekd.data import Split
from scalekd.errors import UserError
from scalekd.methods.base import Method
from scalekd.methods.scalekd import ScaleKD
from scalekd.recipes import Recipe
from scalekd.report.attention import ATTENDED, attended
from scalekd.report.pictures import SIDE, heat, sheet, thumbnail
from scalekd.report.restore import select_images
from scalekd.report.spectra import Floats, compared, decades, energy_shares
from scalekd.tasks.distill.live import Shown

LOOKED_AT = 16  # validation images that the figures are computed on


def live_figures(recipe: Recipe, method: Method, val: Split) -> LiveFigures | None:
    """Return a callable that computes a run's figures at each validation; None for a method without projectors.

    Args:
        recipe: The run's settings.
        method: The pair.
        val: The validation images.
    """
    return LiveFigures(recipe, method, val) if isinstance(method, ScaleKD) else None


class LiveFigures:
    """Computes figures on the same few validation images each time.

    The images and the frozen teacher's outputs for them are read and computed once.

    Args:
        recipe: The run's settings.
        method: The pair.
        val: The validation images.
    """

    def __init__(self, recipe: Recipe, method: ScaleKD, val: Split) -> None:
        # Pictures are not worth waiting for a data folder that is unavailable.
        self._selection = select_images(recipe.model_copy(update={"data_patience": 0}), val, LOOKED_AT)
        self._method, self._at_once = method, recipe.micro_batch or 1  # as many images as fit in memory in training
        # Kept on the CPU: images `[B, 3, h, w]` with the teacher's tokens, and the images that attention is drawn over.
        self._teacher_tokens: list[tuple[Tensor, Tensor]] = []
        self._attended: list[Tensor] = []
        self._shown = False

    @property
    def _device(self) -> torch.device:
        return next(self._method.parameters()).device

    def __call__(self) -> Shown:
        """Compute the figures of the current weights; the first call adds the teacher's spectrum."""
        self.prepare()
        images = {}
        if not self._shown:
            self._shown = True
            tokens = torch.cat([tokens for _, tokens in self._teacher_tokens])
            images["teacher/spectrum"] = spectrum_picture(energy_shares(tokens, self._method.teacher.tokens))
        return Shown(images | self._attention(), self._distances())

    def prepare(self) -> None:
        """Read the images and run the teacher on them, if that is not done yet.

        Raises:
            UserError: If none can be read.
        """
        if self._teacher_tokens:
            return
        read = {index: image for index in self._selection.indices if (image := self._selection.read(index)) is not None}
        if not read:
            raise UserError(f"data: none of {len(self._selection.indices)} images can be read")
        self._attended = [read[index] for index in self._selection.chosen(ATTENDED) if index in read]
        for images in torch.split(torch.stack(list(read.values())), self._at_once):
            self._teacher_tokens.append((images, self._method.teacher(images.to(self._device)).tokens.cpu()))

    def _attention(self) -> dict[str, Image.Image]:
        """Draw a sheet per projector; each column is an image, its mean over all queries, and its central query."""
        columns: dict[str, list[list[Image.Image]]] = {}
        for image in self._attended:
            for name, overlays in attended(self._method, image, self._device).items():
                columns.setdefault(f"attention/{name}", []).append([thumbnail(image), *overlays])
        return {name: sheet(pictures) for name, pictures in columns.items()}

    def _distances(self) -> dict[str, Floats]:
        """Compute the squared distances of all positions, by place and by what is compared."""
        found: dict[str, list[Tensor]] = {}
        for images, tokens in self._teacher_tokens:
            student = self._method.student(images.to(self._device))
            for place, distances in compared(self._method, student, tokens.to(self._device)).items():
                for name, values in distances.items():
                    found.setdefault(f"distances/{place}, {name}", []).append(values.flatten().cpu())
        return {name: torch.cat(values).numpy().astype(np.float64) for name, values in found.items()}


def spectrum_picture(shares: Floats) -> Image.Image:
    """Draw energy shares `[H, W]` on a logarithmic scale of three decades, with the zero frequency at the top left."""
    side = max(2 * SIDE // max(shares.shape), 1)
    squares = heat(decades(shares))
    return squares.resize((squares.width * side, squares.height * side), Image.Resampling.NEAREST)
