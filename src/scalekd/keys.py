"""The base class of recipe keys, and the types of their values. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

Name = TypeVar("Name", str, Path)
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
# Arguments of the builders that choose where weights come from, or build something other than a classifier. Neither a
# weights file nor a recipe may set them: weights are specified by other keys, and are read without running code.
FIXED_ARGS = {
    "cache_dir", "checkpoint_path", "exportable", "features_only", "num_classes", "out_indices", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "resolution", "scriptable", "weights",
}  # fmt: skip

TRANSFORMERS = "transformers:"  # the prefix of models of Hugging Face transformers


class Keys(BaseModel):
    """A group of recipe keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # most groups are only read for their flags
    )


def _nameable(path: Name) -> Name:
    """Check that a path can be passed to the operating system."""
    if b"\0" in os.fsencode(path):
        raise ValueError("no file has a name with a NUL character")
    return path


def _place(value: object) -> str:
    """Check the location of data: a path, or the name of another source."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("input should be a folder or another source's name")
    return _nameable(str(value))


def _inside(name: str) -> str:
    """Check that a split's name stays inside the data."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise ValueError("a split is inside the data; set data to the folder that contains it")
    return _nameable(name)


def _separator(text: object) -> object:
    """Return the character of a named separator; other values as they are."""
    return SEPARATORS.get(text, text) if isinstance(text, str) else text


def _one_character(text: str) -> str:
    if len(text) != 1 or text in '\r\n"':
        raise ValueError(f"input should be one character, or one of {', '.join(SEPARATORS)}")
    return text


Positive = Annotated[int, Field(gt=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Place = Annotated[str, PlainValidator(_place)]  # pydantic's own text holds no undecodable bytes, which names may
File = Annotated[Path, AfterValidator(_nameable)]
SplitName = Annotated[str, Field(min_length=1), AfterValidator(_inside)]
Separator = Annotated[str, BeforeValidator(_separator), AfterValidator(_one_character)]
Undecayed = Literal["norm", "bias", "position", "class_token"]
# The index of a map or, if it contains a letter, the name of a module; the command line passes both as text.
Map = Annotated[
    int | str, Field(title="MAP"), BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.isdecimal() else v)
]
