"""From any kind of pixel that PIL opens to 8-bit RGB: each kind by a stated rule, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_GREY16 = "16-bit grey, 0 is black and 65535 white"
_WHOLE = "whole numbers of 32 bits or with a sign, read where all are from 0 to 255"
_ALPHA = "transparency is ignored"
# What is done with each of PIL's modes; `data check` tells it of those that it meets.
RULES = {
    "1": "black and white",
    "L": "8-bit grey",
    "P": f"colours of its palette; {_ALPHA}",
    "RGB": "8-bit colour as it is; of 16 bits the upper 8",
    "RGBX": "the first three channels",
    "RGBA": f"8-bit colour; {_ALPHA}",
    "RGBa": f"8-bit colour; {_ALPHA}",
    "LA": f"8-bit grey; {_ALPHA}",
    "La": f"8-bit grey; {_ALPHA}",
    "PA": f"colours of its palette; {_ALPHA}",
    "CMYK": "printing colours by PIL's formula, without a profile",
    "YCbCr": "converted to RGB",
    "HSV": "converted to RGB",
    "LAB": "CIE L*a*b* (D50) to sRGB",
    "I;16": _GREY16,
    "I;16L": _GREY16,
    "I;16B": _GREY16,
    "I;16N": _GREY16,
    "I": f"16-bit grey in PGM and PNG files; in others {_WHOLE}",
    "F": "floating-point grey, read where all values are from 0 (black) to 1 (white)",
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
_WHITE_IS_ZERO = 0


class PixelsError(ValueError):
    """A whole image whose values have no agreed black and white; says what they are."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of numbers that its mode alone does not bring to 0 to 255."""
    return image.mode.startswith(("I", "F")) or (image.mode == "L" and _is_signed(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; one that `is_deep` must be whole, as it was opened.

    Raises:
        PixelsError: If the values have no agreed black and white; names their range.
    """
    if image.mode == "RGB":
        return image
    if is_deep(image):
        image = Image.fromarray(_to_8_bits(image))
    elif image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.mode not in RULES:
        raise PixelsError(f"pixels of PIL's mode {image.mode!r} are not read")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # which PIL would otherwise advise, in a warning
    return image.convert("RGB")


def numbers(image: Image.Image) -> NDArray[Any]:
    """What an image that `is_deep` stores, `[h, w]`: PIL takes some numbers with a sign for others, and vice versa."""
    values = np.asarray(image)
    if image.mode == "L":
        values = values.view(np.int8)
    elif image.mode == "I" and image.format == "TIFF" and not _is_signed(image):
        values = values.view(np.uint32)
    return values


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Numbers from black to white as 0 to 255, rounded, `[h, w]`."""
    values, white = numbers(image), _white(image)
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= white):  # so that it holds for what is no number, too
        kind = "floating-point values" if image.mode == "F" else "whole numbers"
        found = f" from {lowest:g} to {highest:g}" if np.isfinite(values).all() else ", some of which are not finite"
        raise PixelsError(f"its pixels are {kind}{found}; they are read from 0 (black) to {white} (white): scale them")
    inverted = _tag(image, _TIFF_PHOTOMETRIC, None) == _WHITE_IS_ZERO
    if image.mode == "F":
        brightness = (255 * values).round().astype(np.uint8)
    else:  # a table of all numbers takes no memory for each pixel
        brightness = (255 * (np.arange(white + 1) / white)).round().astype(np.uint8)[values]
    return 255 - brightness if inverted else brightness


def _white(image: Image.Image) -> int:
    """The value that is white; black is 0."""
    if image.mode == "F":
        return 1
    if image.mode == "L" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return 255
    return int(2 ** _tag(image, _TIFF_BITS, 16) - 1)


def _is_signed(image: Image.Image) -> bool:
    return bool(_tag(image, _TIFF_SAMPLE_FORMAT, 1) == _SIGNED)


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """A tag of a TIFF file; of several values, one a channel, the first."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert converted is not None  # it is changed in place only where asked for
    return converted
