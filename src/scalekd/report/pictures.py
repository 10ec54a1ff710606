"""Small pictures: thumbnails, heat maps and overlays, and their encoding as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 112
_SMOOTH = Image.Resampling.BILINEAR
# From dark violet through red to yellow: readable in print and with colour blindness.
_HEAT = np.array([(20, 11, 52), (101, 21, 110), (186, 54, 85), (243, 120, 25), (252, 220, 100)], np.float64)


def thumbnail(image: Tensor) -> Image.Image:
    """Convert an RGB image in [0, 1] `[3, h, w]` to a picture of `SIDE` pixels."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    side = max(picture.size)
    return picture if side == SIDE else picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def overlay(image: Tensor, weights: Tensor) -> Image.Image:
    """Draw a map of weights `[h', w']` over an image; the largest weight is brightest."""
    picture = thumbnail(image)
    values = weights.float().numpy()
    spread = float(values.max() - values.min())
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    return Image.blend(picture.convert("L").convert("RGB"), heat(scaled).resize(picture.size, _SMOOTH), 0.68)


def heat(strengths: NDArray[Any]) -> Image.Image:
    """Convert strengths in [0, 1] `[h, w]` to colours, one pixel each."""
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(strengths, stops, _HEAT[:, channel]) for channel in range(3)], -1)
    return Image.fromarray(colours.round().astype(np.uint8))


def sheet(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Paste small pictures into a grid, given as columns."""
    whole = Image.new("RGB", (SIDE * len(columns), SIDE * max(map(len, columns))))
    for across, column in enumerate(columns):
        for down, picture in enumerate(column):
            whole.paste(picture, (SIDE * across, SIDE * down))
    return whole


def uri(picture: Image.Image) -> str:
    """Encode a picture as the data URI of a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
