"""The report's figures of a run that trains, for TensorBoard."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scalekd.data import Split
from scalekd.errors import UserError
from scalekd.method import Method, ScaleKD
from scalekd.recipes import Recipe
from scalekd.report.attended import ATTENDED, attended
from scalekd.report.pictures import SIDE, heat, sheet, thumbnail
from scalekd.report.restore import sample
from scalekd.report.spectra import Floats, compared, decades, energy_shares
from scalekd.tasks.distill.live import Shown

LOOKED_AT = 16  # images


def live_figures(recipe: Recipe, method: Method, val: Split) -> LiveFigures | None:
    """What shows a run's figures at each validation; None for a method without projectors.

    Args:
        recipe: The run's settings.
        method: The pair.
        val: The validation images.
    """
    return LiveFigures(recipe, method, val) if isinstance(method, ScaleKD) else None


class LiveFigures:
    """Looks at the same few validation images each time; what cannot change is read and computed once.

    Args:
        recipe: The run's settings.
        method: The pair.
        val: The validation images.
    """

    def __init__(self, recipe: Recipe, method: ScaleKD, val: Split) -> None:
        # The validation has just read the images: there is nothing to wait for.
        self._sample = sample(recipe.model_copy(update={"data_patience": 0}), val, LOOKED_AT)
        self._method, self._at_once = method, recipe.micro_batch or 1  # no more than fit into memory in training
        # On the CPU: images `[B, 3, h, w]` with the teacher's tokens for them, and images to lay attention over.
        self._taught: list[tuple[Tensor, Tensor]] = []
        self._attended: list[Tensor] = []

    @property
    def _device(self) -> torch.device:
        return next(self._method.parameters()).device

    def __call__(self) -> Shown:
        """The figures of the weights as they are, and when called first the teacher's spectrum."""
        images = {}
        if not self._taught:
            self._read()
            tokens = torch.cat([tokens for _, tokens in self._taught])
            images["teacher/spectrum"] = spectrum_picture(energy_shares(tokens, self._method.teacher.tokens))
        return Shown(images | self._attention(), self._distances())

    def _read(self) -> None:
        """Read the images, and ask the teacher about them.

        Raises:
            UserError: If none can be read.
        """
        read = {index: image for index in self._sample.indices if (image := self._sample.read(index)) is not None}
        if not read:
            raise UserError(f"data: none of {len(self._sample.indices)} images can be read")
        self._attended = [read[index] for index in self._sample.chosen(ATTENDED) if index in read]
        for images in torch.split(torch.stack(list(read.values())), self._at_once):
            self._taught.append((images, self._method.teacher(images.to(self._device)).tokens.cpu()))

    def _attention(self) -> dict[str, Image.Image]:
        """By projector, a column for each image: the image, the mean over all queries, the query in the middle."""
        columns: dict[str, list[list[Image.Image]]] = {}
        for image in self._attended:
            for name, looks in attended(self._method, image, self._device).items():
                columns.setdefault(f"attention/{name}", []).append([thumbnail(image), *looks])
        return {name: sheet(pictures) for name, pictures in columns.items()}

    def _distances(self) -> dict[str, Floats]:
        """By place and by what is compared, the squared distances of all positions."""
        found: dict[str, list[Tensor]] = {}
        for images, tokens in self._taught:
            student = self._method.student(images.to(self._device))
            for place, distances in compared(self._method, student, tokens.to(self._device)).items():
                for name, values in distances.items():
                    found.setdefault(f"distances/{place}, {name}", []).append(values.flatten().cpu())
        return {name: torch.cat(values).numpy().astype(np.float64) for name, values in found.items()}


def spectrum_picture(shares: Floats) -> Image.Image:
    """Energy shares `[H, W]` as squares on a logarithmic scale of three decades, the zero frequency in the corner."""
    side = max(2 * SIDE // max(shares.shape), 1)
    squares = heat(decades(shares))
    return squares.resize((squares.width * side, squares.height * side), Image.Resampling.NEAREST)
