"""Images of a data set that exists as an object in Python: anything with a length and items of (image, label)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype, to_pil_image

from scalekd.data.pixels import PixelsError, to_rgb
from scalekd.data.sources.hub import RowNames
from scalekd.data.sources.source import Labelling, same_classes, with_filled_classes
from scalekd.data.split import Split
from scalekd.errors import UserError, first_line


class ImageDataset(Protocol):
    """A map-style data set, such as a `torch.utils.data.Dataset`.

    Its items are (image, label). An image is a PIL image, a tensor `[3, H, W]` or `[1, H, W]` (uint8, or floats in
    [0, 1]) or a uint8 array `[H, W, 3]` or `[H, W]`; it should not be augmented or normalised, because training does
    that. A label is a class index. If the data set has `classes`, these are the class names; if it has `targets`, these
    are the labels, and no image is read to find them.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Objects:
    """Images of a data set object; see `Store`.

    Attributes:
        root: The split, for messages.
        names: The images' names: their indices.
        items: The data set.
    """

    root: Path
    names: Sequence[str]
    items: ImageDataset

    def locate(self, index: int) -> str:
        return f"{self.root}/{index}"

    def open(self, index: int) -> io.BytesIO:
        content = io.BytesIO()
        image = _item(self.items, index, self.locate(index))[0]
        as_picture(image, self.locate(index)).save(content, "PPM")  # lossless and uncompressed
        content.seek(0)
        return content

    def size(self, index: int) -> int:
        return self.open(index).getbuffer().nbytes


def as_picture(image: Any, name: str) -> Image.Image:
    """Convert an image of a data set to an 8-bit RGB picture, by the same rules as files (docs/data.md).

    Args:
        image: See `ImageDataset`.
        name: The image's name, for the message.

    Raises:
        UserError: If it is of another kind.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[..., None])).permute(2, 0, 1)
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] in (1, 3):
        if image.is_floating_point() and bool(((image >= 0) & (image <= 1)).all()):
            image = to_dtype(image, torch.uint8, scale=True)
        if image.dtype == torch.uint8:
            picture: Image.Image = to_pil_image(image.contiguous())
            return picture.convert("RGB")
    shape = f" {list(image.shape)} of {image.dtype}" if hasattr(image, "shape") else ""
    raise UserError(
        f"data: {name} is a {type(image).__name__}{shape}; return a PIL image, a tensor [3, H, W] of uint8 or of "
        "floats in [0, 1], or a uint8 array [H, W, 3], without augmentation and normalisation"
    )


def read_objects(train: ImageDataset, val: ImageDataset) -> tuple[Split, Split]:
    """Read the labels of a training and a validation data set, with the same classes in the same order.

    Raises:
        UserError: If one is empty, an item is no (image, label), or the classes differ.
    """
    training = with_filled_classes(_split(train, "train"))
    return training, same_classes(training, with_filled_classes(_split(val, "val")), ("train", "val"))


def read_object(data: ImageDataset) -> Split:
    """Read the labels of a data set for evaluation.

    Raises:
        UserError: If it is empty, or an item is no (image, label).
    """
    return _split(data, "val")


def _split(data: ImageDataset, name: str) -> Split:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UserError(f"data: {type(data).__name__} has no length or no items by index; pass a map-style data set")
    root = Path(f"{type(data).__name__}/{name}")
    if len(data):  # so that a mistake is reported before anything is built
        with suppress(OSError, PixelsError):  # one image that cannot be read is no mistake
            as_picture(_item(data, 0, f"{root}/0")[0], f"{root}/0")
    names = [str(each) for each in getattr(data, "classes", ())]
    labels = Labelling()
    targets = None if getattr(data, "target_transform", None) else getattr(data, "targets", None)
    known = targets if targets is not None and len(targets) == len(data) else None
    for index in range(len(data)):
        place = f"{root}/{index}"
        label = _as_index(_item(data, index, place)[1] if known is None else known[index], place)
        labels.add(label if names else str(label), str(index))
    return labels.split(Objects(root, RowNames(str(root), len(data)), data), names)


def _item(data: ImageDataset, index: int, name: str) -> Any:
    """Return an item.

    Raises:
        UserError: If it is no pair, or the data set raises an error other than OSError.
        OSError: If a file cannot be read.
    """
    try:
        item = data[index]
    except OSError:  # an unreadable file counts as such
        raise
    except Exception as error:
        raise UserError(f"data: {name} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"data: {name} is a {type(item).__name__}; return (image, label)")
    return item


def _as_index(label: Any, name: str) -> int:
    try:
        if isinstance(label, Tensor | np.ndarray | np.generic):
            label = label.item()
    except (ValueError, RuntimeError):  # several values
        label = None
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise UserError(f"data: {name} has no class index as its label; return (image, label) with 0, 1, 2, ...")
    return label
