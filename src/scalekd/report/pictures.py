"""Small pictures as part of the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

SIDE = 112
# Dark violet over red to yellow: readable in print, and no end of it is lost to the colour-blind.
_HEAT = np.array([(20, 11, 52), (101, 21, 110), (186, 54, 85), (243, 120, 25), (252, 220, 100)], np.float64)


def thumbnail(image: Tensor) -> str:
    """An RGB image in [0, 1] `[3, h, w]` as a data URI of a small JPEG."""
    return _uri(_picture(image))


def overlay(image: Tensor, weights: Tensor) -> str:
    """An image with a map of weights `[h', w']` laid over it, the largest weight the brightest."""
    picture = _picture(image)
    values = weights.float().numpy()
    spread = float(values.max() - values.min())
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(scaled, stops, _HEAT[:, channel]) for channel in range(3)], -1)
    heat = Image.fromarray(colours.round().astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    return _uri(Image.blend(picture.convert("L").convert("RGB"), heat, 0.68))


def _picture(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    side = max(picture.size)
    return picture if side == SIDE else picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
