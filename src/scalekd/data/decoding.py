"""Decode image files into the pixels that a transform needs: upright, as 8-bit RGB tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from scalekd.data.endings import formats, why_unidentified
from scalekd.data.orientation import Box, Turn, read_turn, stored_box, turned, turned_size
from scalekd.data.pixels import PixelsError, is_deep, to_rgb
from scalekd.errors import UserError

# How files become pixels. Part of the identity of runs and caches: change it whenever the same files give other pixels.
DECODING = "EXIF orientation applied"  # runs without this entry used images as stored
MAX_PIXELS = 178_956_970  # PIL's own limit
_LONGEST = 100  # longest side of an image that is resized, as a multiple of its short side


class UnreadableImageError(Exception):
    """A file that is missing, not an image, corrupt, or of an unsupported kind.

    Attributes:
        reason: What is wrong, for users; empty if PIL only reports that the file is corrupt.
    """

    def __init__(self, error: object, reason: str = "") -> None:
        super().__init__(error)
        self.reason = reason


@contextmanager
def _naming_what_is_unreadable() -> Iterator[None]:
    try:
        yield
    except (UnreadableImageError, UserError):  # the latter from a data set of the user's
        raise
    except PixelsError as error:
        raise UnreadableImageError(error, str(error)) from error
    except FileNotFoundError as error:
        raise UnreadableImageError(error, "no such file") from error
    except PermissionError as error:
        raise UnreadableImageError(error, "no permission to read it") from error
    except Exception as error:  # PIL's readers raise nearly any exception on a corrupt file
        raise UnreadableImageError(error, _kind_of_damage(error)) from error


def _kind_of_damage(error: Exception) -> str:
    """Return what is wrong with a file that PIL cannot read, if its message says so; otherwise empty."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown type"
    return "the file is truncated" if "truncated" in str(error).lower() else ""


def _check_regular(path: str) -> None:
    """Check that a path is a regular file and not empty.

    Raises:
        UnreadableImageError: If it is not; the reason says which.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise UnreadableImageError(path, "it is not a regular file")
    if not status.st_size:
        raise UnreadableImageError(path, "the file is empty")


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header has been read and whose pixels are not decoded yet.

    Attributes:
        stored: The image as stored in its file, possibly rotated or mirrored.
        turn: The transformation that makes it upright.
        size: Width and height of the upright image.
    """

    stored: Image.Image
    turn: Turn
    size: tuple[int, int]

    @property
    def mode(self) -> str:
        """PIL's name for its kind of pixels."""
        return self.stored.mode

    @property
    def width(self) -> int:
        """Width of the upright image in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height of the upright image in pixels."""
        return self.size[1]


@contextmanager
def open_image(
    source: Callable[[], str | IO[bytes]], max_pixels: int = MAX_PIXELS, *, name: str = ""
) -> Iterator[OpenedImage]:
    """Open an image and read its header: size, mode and orientation are known, pixels are not decoded yet.

    Args:
        source: Returns the image's path or bytes; may raise OSError.
        max_pixels: Upper limit of its pixels. PIL's limit, a global, is set to it while the image is open.
        name: The file's name if the source returns bytes; some formats are read only under their own ending.

    Raises:
        UnreadableImageError: If the file is missing, not an image of a supported kind, or too large.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None
        with _naming_what_is_unreadable():
            file = source()
            if isinstance(file, str):
                _check_regular(file)
            image = _identified(file, name or (file if isinstance(file, str) else ""))
        Image.MAX_IMAGE_PIXELS = max_pixels  # applies to images embedded in this one
        with image:
            width, height = image.size
            if width * height > max_pixels:
                what = f"{width} x {height} pixels; max_pixels is {max_pixels}"
                raise UnreadableImageError(what, what)
            if min(width, height) < 1:
                raise UnreadableImageError(f"{width} x {height} pixels")
            turn = read_turn(image)
            yield OpenedImage(image, turn, turned_size(image.size, turn))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _identified(file: str | IO[bytes], name: str) -> Image.Image:
    """Open a file with PIL.

    Raises:
        PixelsError: If the file is of a known kind that cannot be read.
        UnidentifiedImageError: If the file is of no known kind.
    """
    try:
        return Image.open(file, formats=formats(name))
    except UnidentifiedImageError:
        if isinstance(file, str):
            with open(file, "rb") as opened:
                start = opened.read(12)
        else:
            file.seek(0)
            start = file.read(12)
        if reason := why_unidentified(start):
            raise PixelsError(reason) from None
        raise


def read(image: OpenedImage) -> Tensor:
    """Decode a whole opened image of any mode: `[3, h, w]`, uint8, upright.

    Raises:
        UnreadableImageError: If the file is corrupt, or its mode does not define which values are black and white.
    """
    with _naming_what_is_unreadable():
        image.stored.load()
        return turned(to_tensor(image.stored), image.turn)


def read_crop(image: OpenedImage, box: Box, side: int, *, remain: int = 2) -> Tensor:
    """Decode an opened image and resize the part in `box` to a square, bicubic: `[3, side, side]`, uint8, upright.

    JPEG files are decoded at a half, a quarter or an eighth of their size if enough pixels remain; the interpolation
    then also reads pixels just outside the box. The square is made upright last, when it is smallest.

    Args:
        image: From `open_image`.
        box: The part to take, in pixels of the upright image.
        side: Rows and columns of the result.
        remain: Reduced decoding must leave at least `remain * side` pixels per side; PIL's thumbnails use 2, too.

    Raises:
        UnreadableImageError: If the file is corrupt, or its mode does not define which values are black and white.
    """
    stored = image.stored
    left, upper, right, lower = part = stored_box(box, image.size, image.turn)
    width, height = stored.size
    shrink = min(right - left, lower - upper) // (remain * side)
    with _naming_what_is_unreadable():
        # For HEIF, draft would select the file's embedded thumbnail.
        if (
            shrink >= 2
            and stored.format != "HEIF"
            and (drafted := stored.draft(None, (width // shrink, height // shrink)))
        ):
            scale = width / drafted[1][2]
            stored.load()
            scaled = (left / scale, upper / scale, right / scale, lower / scale)
            square = to_tensor(to_rgb(stored).resize((side, side), Image.Resampling.BICUBIC, box=scaled))
        else:
            # Conversion of deep images depends on the values of all pixels, so it comes before the crop.
            whole = to_rgb(stored) if is_deep(stored) else stored
            square = resize(to_tensor(whole.crop(part)), [side, side])
        return turned(square, image.turn)


def trim(image: Tensor) -> Tensor:
    """Cut an extremely elongated image to its middle; resized by its short side, it would not fit in memory."""
    height, width = image.shape[-2:]
    longest = _LONGEST * min(height, width)
    if max(height, width) <= longest:
        return image
    trimmed: Tensor = F.center_crop(image, [min(height, longest), min(width, longest)])
    return trimmed


def resize(image: Tensor, size: list[int]) -> Tensor:
    """Resize with antialiased bicubic interpolation; `size` as in torchvision.

    Equals PIL's result up to rounding, in a third of the time.
    """
    resized: Tensor = F.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return resized


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image of any mode to `[3, h, w]`, uint8."""
    tensor: Tensor = F.pil_to_tensor(to_rgb(image))
    return tensor
