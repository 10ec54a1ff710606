"""What a file of annotations in COCO's format must hold, and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    NotRequired,  # pydantic's choice below Python 3.12
)

from annotated_types import Len
from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from scalekd.errors import UserError

_ID = Annotated[int, Field(ge=-(2**53), le=2**53)]
_SIDE = Annotated[int, Field(gt=0, lt=2**31)]


class ImageEntry(TypedDict):
    """An image."""

    id: _ID
    file_name: Annotated[str, Field(min_length=1)]
    width: _SIDE
    height: _SIDE


class CategoryEntry(TypedDict):
    """A class of objects."""

    id: _ID
    name: Annotated[str, Field(min_length=1)]


class Encoding(TypedDict):
    """A mask as run lengths, column by column: as numbers, or in COCO's compressed form."""

    counts: str | list[NonNegativeInt]
    size: Annotated[list[_SIDE], Len(2, 2)]


class AnnotationEntry(TypedDict):
    """An object."""

    id: NotRequired[object]
    image_id: _ID
    category_id: _ID
    bbox: Annotated[list[FiniteFloat], Len(4, 4)]
    segmentation: list[list[FiniteFloat]] | Encoding
    area: NotRequired[Annotated[FiniteFloat, Field(ge=0)]]
    iscrowd: NotRequired[bool]


class Content(TypedDict):
    """A file."""

    images: Annotated[list[ImageEntry], Len(1)]
    annotations: list[AnnotationEntry]
    categories: Annotated[list[CategoryEntry], Len(1)]


_CONTENT = TypeAdapter(Content)
_WANTED = {
    "bbox": "it must be [x, y, width, height], in pixels",
    "segmentation": "there is no mask: it must be polygons or a run-length encoding",
}


def read_annotations(file: Path) -> Content:
    """Read a file; what it holds beyond these entries is passed over.

    Raises:
        UserError: If it cannot be read, or is not as it must be; names the first entry that is not.
    """
    try:
        return _CONTENT.validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"data: {file} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        if first["type"] == "json_invalid":
            raise UserError(f"data: {file} is no JSON ({message}); download it again") from None
        part, *entry = first["loc"] or ("content",)
        if len(entry) < 2:
            where = f"{part} {int(entry[0]) + 1}" if entry else f"the list {part!r}"
            raise UserError(f"data: {file}: {where}: {message}; it must be in COCO's format for instances") from None
        number, key = int(entry[0]) + 1, str(entry[1])
        raise UserError(
            f"data: {file}: {part} entry {number}: {key} is {first['input']!r}: {_WANTED.get(key, message)}"
        ) from None
