"""Resolves a name, file or folder to the specification of a model. Files are read; nothing is built or changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scalekd.errors import UserError
from scalekd.models.folders import weights_of
from scalekd.models.key_matching import likely_head_width
from scalekd.models.sources import MODULE, TORCHVISION, described, may_come_from_a_file, timm_config
from scalekd.models.weights import FILE_ENDINGS, Card, read_weights


@dataclass(frozen=True)
class ModelSpec:
    """A model to be built.

    Attributes:
        source: The name for `create`: a timm name, or one with a prefix.
        architecture: The name of the model, also in its card.
        args: Arguments of the builder, without head and resolution.
        head_width: Classes of the head; None for the architecture's own.
        head_given: Whether the user chose the head's width.
        resolution: Image side in pixels; None for the architecture's own.
        fixed_size: Whether the architecture is built for one resolution.
        pretrained: Whether the hub's weights are loaded.
        weights: The file that `state` was read from.
        state: The file's tensors.
        card: The file's card, if scalekd wrote it.
        classes: Class names from the card or the configuration.
    """

    source: str
    architecture: str
    args: dict[str, Any] = field(default_factory=dict)
    head_width: int | None = None
    head_given: bool = False
    resolution: int | None = None
    fixed_size: bool = False
    pretrained: bool = False
    weights: Path | None = None
    state: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    card: Card | None = None
    classes: tuple[str, ...] = ()

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the builder, without the head; they are stored in a card."""
        sized = self.resolution and self.fixed_size and "img_size" not in self.args
        return self.args | ({"img_size": self.resolution} if sized else {})


def resolve(
    model: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    resolution: int | None = None,
    pretrained: bool = True,
    model_args: dict[str, Any],
) -> ModelSpec:
    """Return the specification of a model; see `ImageModel` for the arguments.

    The head's width and the resolution of a file without a card are only known when its tensors are compared with a
    module: here they are guessed or None, and `build` corrects them.

    Raises:
        UserError: If the name is unknown, or the weights are missing, unreadable or of another model.
    """
    name, weights = _located(model, weights)
    state, card = read_weights(weights) if weights else (None, None)
    name = name or _named_by(card, weights)
    about = described(name)
    architecture = about.architecture if about else name
    own = card is not None and not card.architecture.startswith(MODULE)
    if card is not None and own and _untagged(card.architecture) != _untagged(architecture):
        raise UserError(f"weights: {weights} holds a {card.architecture}, not a {architecture}")
    config = about.config if about else timm_config(name)
    stated = (about.args if about else {}) | (card.args if card else {})
    classes: tuple[str, ...] = ()
    if card is not None:
        classes = card.classes
    elif about is not None and (pretrained or state is not None):
        classes = about.classes
    width = num_classes
    if width is None and card is not None:
        width = card.num_classes
    elif width is None and state is not None:
        width = likely_head_width(state, config.classifier)
    if width is None and name.startswith(TORCHVISION):
        width = 1000
    return ModelSpec(
        source=name,
        architecture=architecture,
        args={key: value for key, value in stated.items() if key != "img_size" or not resolution} | model_args,
        head_width=width,
        head_given=num_classes is not None,
        resolution=resolution or (card.resolution if card else None),
        fixed_size=bool(config.fixed_input_size),
        pretrained=pretrained and state is None,
        weights=Path(weights) if weights else None,
        state=state,
        card=card,
        classes=classes,
    )


def _located(name: str, weights: str | Path | None) -> tuple[str, str | Path | None]:
    """Split what the user passed into a name, empty if the weights state it, and weights."""
    if Path(name).is_dir():
        if weights is not None:
            raise UserError(f"weights: the folder {name} has its own weights; leave {weights} out")
        return weights_of(Path(name))
    if name.endswith(FILE_ENDINGS):
        return "", name
    return name, weights


def _named_by(card: Card | None, weights: str | Path | None) -> str:
    """Return the name of the model in a card."""
    if card is None:
        raise UserError(
            f"weights: {weights} does not say which model it is; pass it together with the name of its timm model"
        )
    if card.architecture.startswith(MODULE):
        raise UserError(
            f"weights: {weights} holds {card.architecture}, which was passed to scalekd.distill as a module; if its "
            "weights fit a model that has a name, pass them together with that name"
        )
    if not may_come_from_a_file(card.architecture):
        raise UserError(
            f"weights: {weights} belongs to {card.architecture}; pass it together with that name as the model"
        )
    return card.architecture


def _untagged(name: str) -> str:
    """Return a name without timm's tag of the weights."""
    return name if ":" in name else name.split(".", maxsplit=1)[0]
