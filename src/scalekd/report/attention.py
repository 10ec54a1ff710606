"""Draws the attention of CAP's projectors over an image."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from scalekd.methods.scalekd import ScaleKD
from scalekd.report.pictures import overlay
from scalekd.report.spectra import attention_maps

ATTENDED = 3  # images


def attended(method: ScaleKD, image: Tensor, device: torch.device) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Draw CAP's attention over an image (ScaleKD section 3.1); see `attention`.

    Args:
        method: The pair, in eval mode.
        image: `[3, h, w]`.
        device: The pair's device.

    Returns:
        Two pictures for each projector, by name: the mean over all queries, and the query at the centre of the
        teacher's grid.
    """
    grids = {"CAP_prev": method.teacher.tail_input, "CAP_last": method.teacher.tokens}
    pictures = {}
    for name, weights in attention_maps(method, image[None].to(device)).items():
        grid = grids[name.partition(",")[0]]
        middle = grid.height // 2 * grid.width + grid.width // 2
        pictures[name] = overlay(image, weights[0].mean(0)), overlay(image, weights[0, middle])
    return pictures
