"""Reads and validates annotation files in COCO's format; knows nothing about image files or classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic's choice below Python 3.12
)

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from scalekd.errors import UserError

_INTEGER = re.compile(r"-?[0-9]{1,18}(\.0+)?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs write it before UTF-8 text


def _as_integer(value: Any) -> Any:
    """Convert an id to an integer if it is one, so that 7, 7.0, "7" and "7.0" are the same id."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value.partition(".")[0])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _four_or_none(box: list[float]) -> list[float]:
    if len(box) not in (0, 4):
        raise ValueError("a box has four numbers")
    return box


def _as_polygons(mask: Any) -> Any:
    """Turn any empty mask into None, and a single polygon into a list of one polygon."""
    if not mask:
        return None
    return [mask] if isinstance(mask, list) and not isinstance(mask[0], list) else mask


Id = Annotated[
    Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[str, Field(min_length=1)], BeforeValidator(_as_integer)
]
_Side = Annotated[int, Field(gt=0, lt=2**31)]
_StatedSide = Annotated[int, Field(ge=0, lt=2**31)] | None  # tools write 0 or null if they do not know


class ImageEntry(TypedDict):
    """An entry of `images`."""

    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: NotRequired[_StatedSide]
    height: NotRequired[_StatedSide]


class CategoryEntry(TypedDict):
    """An entry of `categories`: a class of objects."""

    id: Id
    name: Annotated[str, Field(min_length=1)]
    supercategory: NotRequired[object]


class Encoding(TypedDict):
    """A mask as run lengths in column-major order: a list of numbers, or COCO's compressed string."""

    counts: str | list[NonNegativeInt]
    size: Annotated[list[_Side], Len(2, 2)]


Mask = list[list[float]] | Encoding


class AnnotationEntry(TypedDict):
    """An entry of `annotations`: one object."""

    id: NotRequired[object]
    image_id: Id
    category_id: Id
    bbox: NotRequired[Annotated[list[FiniteFloat], AfterValidator(_four_or_none)] | None]
    segmentation: NotRequired[
        Annotated[
            list[list[FiniteFloat]] | Encoding | None,
            Field(union_mode="left_to_right"),
            BeforeValidator(_as_polygons),
        ]
    ]
    area: NotRequired[Annotated[FiniteFloat, Field(ge=0)] | None]
    iscrowd: NotRequired[bool | None]


class Content(TypedDict):
    """The content of an annotation file."""

    images: Annotated[list[ImageEntry], Len(1)]
    annotations: list[AnnotationEntry]
    categories: Annotated[list[CategoryEntry], Len(1)]


_CONTENT = TypeAdapter(Content)
_EXPORT = "it must be in COCO's format for instances: export it so"
_WANTED = {
    "bbox": "it must be [x, y, width, height], in pixels",
    "segmentation": "it must be polygons or a run-length encoding, or [] if there is no mask",
}


def read_annotations(file: Path) -> Content:
    """Read and validate an annotation file; unknown entries are ignored.

    Raises:
        UserError: If the file cannot be read or is invalid; names the first invalid entry.
    """
    try:
        return _CONTENT.validate_json(file.read_bytes().removeprefix(_BYTE_ORDER_MARK))
    except OSError as error:
        raise UserError(f"data: {file} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        if first["type"] == "json_invalid":
            raise UserError(f"data: {file} is not a JSON file ({message}); export or download it again") from None
        if not first["loc"]:
            raise UserError(
                f"data: {file} holds no object with images, annotations and categories; {_EXPORT}"
            ) from None
        part, *entry = first["loc"]
        if len(entry) < 2:
            where = f"{part} {int(entry[0]) + 1}" if entry else f"the list {part!r}"
            raise UserError(f"data: {file}: {where}: {message}; {_EXPORT}") from None
        number, key = int(entry[0]) + 1, str(entry[1])
        found = "" if first["type"] == "missing" else f" is {first['input']!r}"
        raise UserError(f"data: {file}: {part} entry {number}: {key}{found}: {_WANTED.get(key, message)}") from None
