"""From an image file to the pixels that a transform needs: upright, as 8-bit RGB tensors."""

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

# How files become pixels, for runs and caches to be told apart by it: changed whenever the same files give others.
DECODING = "EXIF orientation applied"  # before there was this line, pictures were taken as they are stored
MAX_PIXELS = 178_956_970  # where PIL refuses of its own accord
_LONGEST = 100  # times the short side


class UnreadableImageError(Exception):
    """A file that is missing, no image, corrupt, or of a kind that is not read.

    Attributes:
        reason: What is wrong, for users; empty where PIL finds it corrupt.
    """

    def __init__(self, error: object, reason: str = "") -> None:
        super().__init__(error)
        self.reason = reason


@contextmanager
def _naming_what_is_unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableImageError:
        raise
    except PixelsError as error:
        raise UnreadableImageError(error, str(error)) from error
    except FileNotFoundError as error:
        raise UnreadableImageError(error, "no such file") from error
    except PermissionError as error:
        raise UnreadableImageError(error, "no permission to read it") from error
    except Exception as error:  # PIL's readers meet nearly any in a corrupt file
        raise UnreadableImageError(error, _kind_of_damage(error)) from error


def _kind_of_damage(error: Exception) -> str:
    """What is wrong with a file that PIL cannot read, if its message tells; empty where it is corrupt in some way."""
    return "the file is truncated" if "truncated" in str(error).lower() else ""


def _check_regular(path: str) -> None:
    """Make sure that there is something to read: no folder, nothing that would be waited for, not empty.

    Raises:
        UnreadableImageError: If it is not; says which.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise UnreadableImageError(path, "it is no regular file")
    if not status.st_size:
        raise UnreadableImageError(path, "the file is empty")


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read and whose pixels are not decoded yet.

    Attributes:
        stored: The image as its file stores it, perhaps turned.
        turn: What makes it upright.
        size: Width and height of the upright picture.
    """

    stored: Image.Image
    turn: Turn
    size: tuple[int, int]

    @property
    def mode(self) -> str:
        """PIL's name for the kind of its pixels."""
        return self.stored.mode

    @property
    def width(self) -> int:
        """Columns of the upright picture."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Rows of the upright picture."""
        return self.size[1]


@contextmanager
def open_image(
    source: Callable[[], str | IO[bytes]], max_pixels: int = MAX_PIXELS, *, name: str = ""
) -> Iterator[OpenedImage]:
    """Open an image and read its header: size, mode and orientation are known, pixels are not decoded yet.

    Args:
        source: Gives its path or its bytes; may raise OSError.
        max_pixels: Pixels that it may have; meanwhile this is PIL's limit, too, which is a global.
        name: Its file's name where the source gives bytes; some formats are read under their own ending only.

    Raises:
        UnreadableImageError: If it is missing, no image of a kind that is read, or too large.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None
        with _naming_what_is_unreadable():
            file = source()
            if isinstance(file, str):
                _check_regular(file)
            image = _identified(file, name or (file if isinstance(file, str) else ""))
        Image.MAX_IMAGE_PIXELS = max_pixels  # for what is inside of other images
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
    """PIL's image of a file.

    Raises:
        PixelsError: If it is of a kind that we know and cannot read.
        UnidentifiedImageError: If it is of none.
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
    """Decode the whole of an opened image of any mode: `[3, h, w]`, uint8, upright.

    Raises:
        UnreadableImageError: If the file is corrupt, or its values have no agreed black and white.
    """
    with _naming_what_is_unreadable():
        image.stored.load()
        return turned(to_tensor(image.stored), image.turn)


def read_crop(image: OpenedImage, box: Box, side: int, *, remain: int = 2) -> Tensor:
    """Decode an opened image and resize what is in `box` to a square, bicubic: `[3, side, side]`, uint8, upright.

    JPEG files are decoded at a half, a quarter or an eighth of their size where enough pixels remain; at the box's
    edges the interpolation then sees what lies outside. The square is turned last, which costs least.

    Args:
        image: From `open_image`.
        box: What to take, in pixels of the upright image.
        side: Rows and columns wanted.
        remain: Times as many of them as reduced decoding must leave; PIL's thumbnails take 2, too.

    Raises:
        UnreadableImageError: If the file is corrupt, or its values have no agreed black and white.
    """
    stored = image.stored
    left, upper, right, lower = part = stored_box(box, image.size, image.turn)
    width, height = stored.size
    shrink = min(right - left, lower - upper) // (remain * side)
    with _naming_what_is_unreadable():
        # HEIF's draft would be the file's thumbnail.
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
            # What the values of all pixels decide is decided before the crop.
            whole = to_rgb(stored) if is_deep(stored) else stored
            square = resize(to_tensor(whole.crop(part)), [side, side])
        return turned(square, image.turn)


def trim(image: Tensor) -> Tensor:
    """The middle of an image that is absurdly long, for enlarged to a usual height it would not fit into memory."""
    height, width = image.shape[-2:]
    longest = _LONGEST * min(height, width)
    if max(height, width) <= longest:
        return image
    trimmed: Tensor = F.center_crop(image, [min(height, longest), min(width, longest)])
    return trimmed


def resize(image: Tensor, size: list[int]) -> Tensor:
    """Bicubic, with antialiasing; as PIL does it up to rounding, in a third of the time. `size` as in torchvision."""
    resized: Tensor = F.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return resized


def to_tensor(image: Image.Image) -> Tensor:
    """An image of any mode as `[3, h, w]`, uint8."""
    tensor: Tensor = F.pil_to_tensor(to_rgb(image))
    return tensor
