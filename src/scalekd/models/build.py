"""Building models by name or file, with errors that name the mend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.models.failure import naming_model
from scalekd.models.families import has_patch_tokens
from scalekd.models.fitting import fit_keys, likely_head_width, load_fitted, stored_resolution
from scalekd.models.folders import weights_of
from scalekd.models.sources import PYTHON, TORCHVISION, create, described, may_come_from_a_file, timm_config
from scalekd.models.weights import FILE_ENDINGS, Card, read_weights, save_weights

T = TypeVar("T")


class ImageModel(nn.Module):
    """A model that takes RGB images in [0, 1] and applies its own normalisation and resolution.

    Args:
        model: A timm name, `hf-hub:NAME`, `torchvision:NAME`, `python:module.callable`, a safetensors file written by
            scalekd, a folder (see `weights_of`), or a module (normalised as its timm configuration says, or for
            ImageNet).
        weights: A safetensors file for `model`.
        num_classes: Width of the head; by default the weights' or the architecture's own.
        resolution: Image side in pixels the model runs at; by default the weights' or the architecture's own.
        pretrained: Whether a name without `weights` loads the hub's weights.
        model_args: Further arguments of `timm.create_model`, or of whatever else builds the model.

    Attributes:
        classes: Class names in the order of the logits; empty where nothing names them.
        weights: The file that it was read from; None for a name without one.
        notes: What was done to the file's keys and head, one line each.
        resolution_given: Whether the resolution is the user's choice.

    Raises:
        UserError: For an unknown name, or weights that are missing or do not fit.
    """

    takes_fresh_head: ClassVar[bool] = False  # whether weights with another head, or none, are a start all the same

    mean: Tensor
    std: Tensor
    _head_width: int | None
    model: Any  # mostly a timm model; `nn.Module` would hide what timm's classes offer

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        resolution: int | None = None,
        pretrained: bool = True,
        **model_args: Any,
    ) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = ()
        self.weights: Path | None = None
        self.notes: tuple[str, ...] = ()
        self.resolution_given = resolution is not None
        if isinstance(model, nn.Module):
            if weights is not None or num_classes is not None or model_args:
                raise UserError(
                    "model: a module is taken as it is; give weights, num_classes and the like to its builder"
                )
            config = getattr(model, "pretrained_cfg", None) or {}
            self.name, self.model_args = config.get("architecture") or type(model).__name__, model_args
            card, module, self._head_width = None, model, None
        else:
            card, module = self._create(
                str(model),
                weights=weights,
                num_classes=num_classes,
                resolution=resolution,
                pretrained=pretrained,
                model_args=model_args,
            )
        self.model = module
        config = timm.data.resolve_model_data_config(module)
        self.num_classes = int(getattr(module, "num_classes", self._head_width or 0))
        own = self.model_args.get("img_size") or (card.resolution if card else config["input_size"][-1])
        self.resolution = int(resolution or own)
        self.crop_fraction: float = card.crop_fraction if card else config["crop_pct"]
        mean, std = (card.mean, card.std) if card else (config["mean"], config["std"])
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def _create(
        self,
        name: str,
        *,
        weights: str | Path | None,
        num_classes: int | None,
        resolution: int | None,
        pretrained: bool,
        model_args: dict[str, Any],
    ) -> tuple[Card | None, nn.Module]:
        """The module that a name stands for with its weights, and their card."""
        name, weights = _located(name, weights)
        state, card = read_weights(weights) if weights else (None, None)
        name = name or _named_by(card, weights)
        about = described(name)
        self.name, self.weights = about.architecture if about else name, Path(weights) if weights else None
        if card is not None and _untagged(card.architecture) != _untagged(self.name):
            raise UserError(f"weights: {weights} holds a {card.architecture}, not a {self.name}")
        config = about.config if about else timm_config(name)
        stated = (about.args if about else {}) | (card.args if card else {})
        model_args = {key: value for key, value in stated.items() if key != "img_size" or not resolution} | model_args
        guess = num_classes
        if card is not None:
            resolution = resolution or card.resolution
            guess = card.num_classes if num_classes is None else num_classes
        elif state is not None and num_classes is None:
            guess = likely_head_width(state, config.classifier)

        def build(classes: int | None, side: int | None) -> nn.Module:
            sized = side and config.fixed_input_size and "img_size" not in model_args
            self.model_args = model_args | ({"img_size": side} if sized else {})
            self._head_width = 1000 if classes is None and name.startswith(TORCHVISION) else classes
            width = {} if self._head_width is None else {"num_classes": self._head_width}
            return create(name, pretrained=pretrained and state is None, model_args=self.model_args | width)

        module = build(guess, resolution)
        if state is not None:
            fitted = fit_keys(module, state)
            if card is None:  # its head and position embeddings say what a card would
                told = (
                    fitted.head_width if num_classes is None else num_classes,
                    resolution or stored_resolution(module, fitted.plain),
                )
                if told != (getattr(module, "num_classes", self._head_width), resolution):
                    module = build(*told)
                    fitted = fit_keys(module, state)
            self.notes = load_fitted(module, fitted, state, str(weights), fresh_head=self.takes_fresh_head)
        trained = pretrained or state is not None
        names = card.classes if card is not None else about.classes if about and trained else ()
        self.classes = names if len(names) == getattr(module, "num_classes", self._head_width) else ()
        return card, module

    @property
    def is_own_code(self) -> bool:
        """Whether the model was built by the user's own code."""
        return self.name.startswith(PYTHON)

    def prepare(self, images: Tensor) -> Tensor:
        """`[B, 3, h, w]` in [0, 1] -> this model's resolution and normalisation."""
        if images.shape[-2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution, self.resolution), mode="bicubic", antialias=True)
        return (images - self.mean) / self.std

    def run(self, role: str, call: Callable[[Tensor], T], images: Tensor) -> T:
        """What the model's own code makes of images `[B, 3, h, w]` in [0, 1].

        Args:
            role: The key that names the model, for messages.
            call: The model, or one of its functions.
            images: What `prepare` takes.

        Raises:
            ModelError: If that code fails.
        """
        prepared = self.prepare(images)
        if torch.compiler.is_compiling():  # what raises is then the compiler
            return call(prepared)
        with naming_model(role, self.name, prepared.shape, "be trained on" if self.model.training else "run on"):
            return call(prepared)

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Make sure that the logits stand for these classes, as far as the weights say.

        Raises:
            UserError: If their number or, where the weights name them, their names differ.
        """
        if self.num_classes != len(classes):
            has = f"{self.num_classes} classes" if self.num_classes else "no head"
            unknown = [name for name in classes if name not in self.classes] if self.classes else []
            which = f" ({unknown[0]!r} is none of the model's)" if unknown else ""
            if not self.classes and self.num_classes > len(classes):
                which = " (its own have no names, by which a part of them could be told)"
            raise UserError(f"model: {self.name} has {has}, the data {len(classes)} classes{which}; {self.head_advice}")
        differ = [(own, other) for own, other in zip(self.classes, classes, strict=False) if own != other]
        if differ:
            raise UserError(f"model: {self.name} knows class {differ[0][0]!r} where the data has {differ[0][1]!r}")

    @property
    def head_advice(self) -> str:
        """What gives this model a head for other classes."""
        if hasattr(self.model, "forward_head") and (self.weights is not None or has_patch_tokens(self.model)):
            return "`scalekd adapt` fits a head for them"
        start = f"--student-weights {self.weights}" if self.weights is not None else "--student-pretrained"
        return f"train it on them with `scalekd distill --method none --student {self.name} {start}`"

    def save(
        self,
        path: str | Path,
        classes: tuple[str, ...] = (),
        top1: float | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Write plain timm weights: `timm.create_model(name, checkpoint_path=path)` loads them.

        Args:
            path: A `.safetensors` file, replaced whole or not at all.
            classes: Class names in the order of the logits, kept in the file's card.
            top1: Accuracy in percent to keep in the card.
            state: The weights, where this process does not hold all of them.

        Returns:
            The SHA-256 of the file.
        """
        weights = self.model.state_dict() if state is None else state
        return save_weights(path, weights, self.card(classes, top1))

    def card(self, classes: tuple[str, ...] = (), top1: float | None = None) -> Card:
        """The card to save this model's weights with; for the arguments see `save`."""
        return Card(
            architecture=self.name,
            args=self.model_args,
            num_classes=self.num_classes,
            resolution=self.resolution,
            mean=tuple(self.mean.flatten().tolist()),
            std=tuple(self.std.flatten().tolist()),
            crop_fraction=self.crop_fraction,
            classes=classes or self.classes,
            top1=top1,
        )

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{self.name} ({parameters / 1e6:.2f} M parameters, {self.resolution} px, {self.num_classes} classes)"


def _located(name: str, weights: str | Path | None) -> tuple[str, str | Path | None]:
    """What the user calls the model -> its name, empty where its weights say it, and its weights."""
    if Path(name).is_dir():
        if weights is not None:
            raise UserError(f"weights: the folder {name} brings its own weights along; leave {weights} out")
        return weights_of(Path(name))
    if name.endswith(FILE_ENDINGS):
        return "", name
    return name, weights


def _named_by(card: Card | None, weights: str | Path | None) -> str:
    """The model that weights say they belong to."""
    if card is None:
        raise UserError(f"weights: {weights} does not say which model it is; name the timm model beside it")
    if not may_come_from_a_file(card.architecture):
        raise UserError(f"weights: {weights} belongs to {card.architecture}; name that as the model beside it")
    return card.architecture


def _untagged(name: str) -> str:
    """A name without timm's weight tag."""
    return name if ":" in name else name.split(".", maxsplit=1)[0]
