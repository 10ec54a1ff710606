"""Convert every kind of pixel that PIL opens to 8-bit RGB by a documented rule, or raise with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_GREY16 = "16-bit grey, 0 is black and 65535 white"
_WHOLE = "32-bit or signed whole numbers, read if all are from 0 to 255"
_ALPHA = "transparency is ignored"
# How each of PIL's modes is read; `data check` prints the rules of the modes that it finds.
RULES = {
    "1": "black and white",
    "L": "8-bit grey",
    "P": f"colours of its palette; {_ALPHA}",
    "RGB": "8-bit colour as is; of 16-bit colour the upper 8 bits",
    "RGBX": "8-bit colour, the first three channels",
    "RGBA": f"8-bit colour; {_ALPHA}",
    "RGBa": f"8-bit colour; {_ALPHA}",
    "LA": f"8-bit grey; {_ALPHA}",
    "La": f"8-bit grey; {_ALPHA}",
    "PA": f"colours of its palette; {_ALPHA}",
    "CMYK": "CMYK converted by PIL's formula, without a colour profile",
    "YCbCr": "converted to RGB",
    "HSV": "converted to RGB",
    "LAB": "CIE L*a*b* (D50) to sRGB",
    "I;16": _GREY16,
    "I;16L": _GREY16,
    "I;16B": _GREY16,
    "I;16N": _GREY16,
    "I": f"16-bit grey in PGM and PNG files; in other files {_WHOLE}",
    "F": "floating-point grey, read if all values are from 0 (black) to 1 (white)",
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
_WHITE_IS_ZERO = 0


class PixelsError(ValueError):
    """An intact image whose values cannot be mapped to 8-bit RGB, because black and white are not defined for them."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of numbers whose mode alone does not say how to map them to 0 to 255."""
    return image.mode.startswith(("I", "F")) or (image.mode == "L" and _is_signed(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; if it `is_deep`, it must be whole (not cropped), as it was opened.

    Raises:
        PixelsError: If black and white are not defined for the values; names their range.
    """
    if image.mode == "RGB":
        return image
    if is_deep(image):
        image = Image.fromarray(_to_8_bits(image))
    elif image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.mode not in RULES:
        raise PixelsError(f"pixels of PIL's mode {image.mode!r} are not supported")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # otherwise PIL prints a warning that advises this
    return image.convert("RGB")


def numbers(image: Image.Image) -> NDArray[Any]:
    """Return the values of an image that `is_deep`, `[h, w]`, correcting signedness where PIL gets it wrong."""
    values = np.asarray(image)
    if image.mode == "L":
        values = values.view(np.int8)
    elif image.mode == "I" and image.format == "TIFF" and not _is_signed(image):
        values = values.view(np.uint32)
    return values


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Map values from black to white to 0 to 255, rounded, `[h, w]`."""
    values, white = numbers(image), _white(image)
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= white):  # written so that it also holds for NaN
        kind = "floating-point values" if image.mode == "F" else "whole numbers"
        found = f" from {lowest:g} to {highest:g}" if np.isfinite(values).all() else ", some of which are not finite"
        raise PixelsError(f"its pixels are {kind}{found}; they are read from 0 (black) to {white} (white): scale them")
    inverted = _tag(image, _TIFF_PHOTOMETRIC, None) == _WHITE_IS_ZERO
    if image.mode == "F":
        brightness = (255 * values).round().astype(np.uint8)
    else:  # a lookup table needs no temporary memory per pixel
        brightness = (255 * (np.arange(white + 1) / white)).round().astype(np.uint8)[values]
    return 255 - brightness if inverted else brightness


def _white(image: Image.Image) -> int:
    """Return the value of white; black is 0."""
    if image.mode == "F":
        return 1
    if image.mode == "L" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return 255
    return int(2 ** _tag(image, _TIFF_BITS, 16) - 1)


def _is_signed(image: Image.Image) -> bool:
    return bool(_tag(image, _TIFF_SAMPLE_FORMAT, 1) == _SIGNED)


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """Return a tag of a TIFF file; the first value if there is one per channel."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert converted is not None  # None is only returned for in-place conversion
    return converted
