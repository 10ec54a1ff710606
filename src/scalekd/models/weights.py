"""Read and write weights: safetensors only, with a card that says which timm model they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scalekd.atomic import replacing
from scalekd.errors import UserError
from scalekd.keys import FIXED_ARGS

CARD_KEY = "scalekd"
EXPORTED = (".onnx", ".pt2")  # exported programs, which hold no state dict
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", *EXPORTED)  # a model name with such an ending is a file


@dataclass(frozen=True)
class Card:
    """Metadata of a weights file, so that its path is enough to rebuild the model.

    Attributes:
        architecture: timm model name.
        args: Further arguments of `timm.create_model`.
        num_classes: Width of the head.
        resolution: Image side in pixels at which the weights were trained.
        mean, std: Channel statistics that the model expects, for RGB in [0, 1].
        crop_fraction: Fraction of the resized image that is used in evaluation.
        classes: Class names in the order of the logits; empty if unknown.
        top1: Measured top-1 accuracy in percent; None if it was not measured.
        map: Measured mean average precision in percent, with several labels per image; None if it was not measured.
        multi_label: Whether an image may have several classes.
        license: Licence of the published weights that these were trained from, such as `apache-2.0`; None if there are
            none, or it is not known.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    architecture: str
    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    resolution: Annotated[int, Field(gt=0, le=16384)]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    crop_fraction: Annotated[float, Field(ge=0.1, le=1)] = 0.875
    args: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    top1: float | None = None
    map: float | None = None
    multi_label: bool = False
    license: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entries for the file; some only if they differ from the default."""
        optional = {"map": None, "multi_label": False, "license": None}
        return {name: value for name, value in asdict(self).items() if name not in optional or value != optional[name]}


_CARDS = TypeAdapter(Card)


def save_weights(path: str | Path, weights: Mapping[str, Tensor], card: Card) -> str:
    """Write plain timm weights and their card atomically.

    Returns:
        The SHA-256 of the file.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copied because safetensors rejects tensors that share memory (modules used twice, as in CoaT).
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }
    # One metadata key only: safetensors writes several in random order, and equal weights must have equal hashes.
    try:
        with replacing(path) as partial:
            save_file(state, partial, metadata={CARD_KEY: json.dumps(card.as_dict())})
            partial.chmod(0o644)  # safetensors creates files that only their owner can read
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).rpartition("I/O error: ")[2]  # without safetensors' own prefix
        raise UserError(f"weights: {path} cannot be written: {reason}") from error
    return file_hash(path)


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], Card | None]:
    """Read a safetensors file; no code in it is executed.

    Returns:
        The state dict, and the card if scalekd wrote the file, otherwise None.

    Raises:
        UserError: If the file is missing or is not a safetensors file (for example a pickle).
    """
    if not Path(path).is_file():
        raise UserError(f"weights: no such file: {path}")
    if str(path).endswith(EXPORTED):
        raise UserError(
            f"weights: {path} is an exported program; specify the run's folder or its student.safetensors "
            "(only `scalekd predict` takes .onnx files)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        if _is_pickle(path):
            raise UserError(
                f"weights: {path} is not a safetensors file; pickle files (.pth, .pt, .bin) can run code and are "
                "refused: load them in torch with weights_only=True and save the tensors with safetensors"
            ) from None
        raise UserError(
            f"weights: {path} is incomplete, corrupt or not a safetensors file ({error}); copy or download it again"
        ) from None
    return state, read_card(metadata[CARD_KEY], path) if CARD_KEY in metadata else None


def _is_pickle(path: str | Path) -> bool:
    """Return whether a file starts as those of `torch.save` do: as a zip archive or a pickle."""
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header, whose bytes may be any, and then the header's brace.
    return start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")


def read_card(text: str, source: str | Path) -> Card:
    """Parse a card from JSON.

    Args:
        text: The entry `scalekd` of a file's metadata.
        source: The file, for messages.

    Raises:
        UserError: If the card is invalid, or sets arguments that a file must not set.
    """
    try:
        card = _CARDS.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"weights: {source} has a card this version cannot read: {key}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"weights: {source} has a card this version cannot read: {error}") from None
    if card.num_classes and len(card.classes) not in (0, card.num_classes):
        raise UserError(f"weights: {source} names {len(card.classes)} classes, but has {card.num_classes} outputs")
    foreign = sorted(card.args.keys() & FIXED_ARGS)
    if foreign:
        raise UserError(f"weights: {source} wants to set {foreign[0]}, which a weights file must not; do not trust it")
    return card
