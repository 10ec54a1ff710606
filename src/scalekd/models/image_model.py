"""A model with its normalisation, resolution and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.keys import TRANSFORMERS
from scalekd.models.build import BuiltModel, build
from scalekd.models.failure import naming_model
from scalekd.models.families import can_teach
from scalekd.models.resolve import ModelSpec, resolve
from scalekd.models.sources import MODULE, PYTHON
from scalekd.models.weights import Card, save_weights

T = TypeVar("T")


class ImageModel(nn.Module):
    """A model that takes RGB images in [0, 1] and applies its own normalisation and resolution.

    Args:
        model: A timm name, `hf-hub:NAME`, `torchvision:NAME`, `python:module.callable`, a safetensors file written by
            scalekd, a folder (see `weights_of`), or a module (normalised as its timm configuration says, or for
            ImageNet).
        weights: A safetensors file for `model`.
        num_classes: Width of the head; by default that of the weights or the architecture.
        resolution: Side in pixels of the model's input; by default that of the weights or the architecture.
        pretrained: Whether a name without `weights` loads the hub's weights.
        model_args: Further arguments of `timm.create_model`, or of whatever else builds the model.

    Attributes:
        classes: Class names in the order of the logits; empty if unknown.
        weights: The weights file; None without one.
        from_hub: Whether it has the hub's weights.
        license: Licence of the published weights it starts from, as timm or the weights' card states it; None if it
            starts from none, or the licence is not known.
        notes: Changes made to the file's keys and head, one line each.
        resolution_given: Whether the user chose the resolution.

    Raises:
        UserError: For an unknown name, or weights that are missing or do not fit.
    """

    takes_fresh_head: ClassVar[bool] = False  # whether weights with another head or none are accepted
    takes_transformers: ClassVar[bool] = False  # whether it may be a model of transformers

    mean: Tensor
    std: Tensor
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
        self._is_foreign, self._passed = False, isinstance(model, nn.Module)
        if isinstance(model, nn.Module):
            if weights is not None or num_classes is not None or model_args:
                raise UserError(
                    "model: a module is used as is; pass weights, num_classes and other arguments to its builder"
                )
            known = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
            self._is_foreign = known is None
            name = known or type(model).__name__
            built = BuiltModel(model, ModelSpec(name, name))
        else:
            if str(model).startswith(TRANSFORMERS) and not self.takes_transformers:
                raise UserError(f"model: {model}: models of transformers can only be teachers of `scalekd distill`")
            spec = resolve(
                str(model),
                weights=weights,
                num_classes=num_classes,
                resolution=resolution,
                pretrained=pretrained,
                model_args=model_args,
            )
            built = build(spec, fresh_head=self.takes_fresh_head)
        self.model, spec, self.notes = built
        self.name, self.model_args, self.weights = spec.architecture, spec.model_args, spec.weights
        self.num_classes, self._head_width = built.num_classes, spec.head_width
        self.classes = spec.classes if len(spec.classes) == self.num_classes else ()
        self.multi_label = spec.card is not None and spec.card.multi_label
        self.license, self.from_hub = _license(self.model, spec), spec.pretrained
        card, config = spec.card, timm.data.resolve_model_data_config(self.model)
        own = self.model_args.get("img_size") or (card.resolution if card else _built_side(self.model, config))
        self.resolution, self.resolution_given = int(resolution or own), resolution is not None
        self.crop_fraction: float = card.crop_fraction if card else config["crop_pct"]
        mean, std = (card.mean, card.std) if card else (config["mean"], config["std"])
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def is_foreign(self) -> bool:
        """Whether the model is neither timm's nor torchvision's, but the user's own code or one of transformers.

        Such code may keep tensors between calls, so the planner does not run it on tensors without memory.
        """
        return self._is_foreign or self.name.startswith((PYTHON, TRANSFORMERS))

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise images `[B, 3, h, w]` in [0, 1] for this model."""
        if images.shape[-2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution, self.resolution), mode="bicubic", antialias=True)
        return (images - self.mean) / self.std

    def outputs(self, images: Tensor) -> object:
        """Compute what a run computes of prepared images `[B, 3, h, w]`, to count its operations."""
        return self.model(images)

    def run(self, role: str, call: Callable[[Tensor], T], images: Tensor) -> T:
        """Call the model's own code on images `[B, 3, h, w]` in [0, 1]; returns its output.

        Args:
            role: The key that names the model, for messages.
            call: The model, or one of its functions.
            images: Images as `prepare` takes them.

        Raises:
            ModelError: If the code fails.
        """
        prepared = self.prepare(images)
        if torch.compiler.is_compiling():  # errors are then the compiler's
            return call(prepared)
        with naming_model(role, self.name, prepared.shape, "be trained on" if self.model.training else "run on"):
            return call(prepared)

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Check that the logits are for these classes, as far as it is known.

        Raises:
            UserError: If their number or, if the weights have class names, their names differ.
        """
        if self.num_classes != len(classes):
            has = f"{self.num_classes} classes" if self.num_classes else "no head"
            unknown = [name for name in classes if name not in self.classes] if self.classes else []
            which = f" ({unknown[0]!r} is not one of the model's)" if unknown else ""
            if not self.classes and self.num_classes > len(classes):
                which = " (the model has no class names to match them with)"
            raise UserError(f"model: {self.name} has {has}, the data {len(classes)} classes{which}; {self.head_advice}")
        differ = [(own, other) for own, other in zip(self.classes, classes, strict=False) if own != other]
        if differ:
            raise UserError(f"model: {self.name} knows class {differ[0][0]!r} where the data has {differ[0][1]!r}")

    @property
    def head_advice(self) -> str:
        """Advice on how to get a head for other classes."""
        if self.name.startswith((PYTHON, TRANSFORMERS)):
            return "`scalekd adapt` fits heads for timm's models only"
        if hasattr(self.model, "forward_head") and (self.weights is not None or can_teach(self.model)):
            return "`scalekd adapt` fits a head for them"
        start = f"--student-weights {self.weights}" if self.weights is not None else "--student-pretrained"
        return f"train it on them with `scalekd distill --method none --student {self.name} {start}`"

    def save(
        self,
        path: str | Path,
        classes: tuple[str, ...] = (),
        accuracy: float | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Write plain timm weights: `timm.create_model(name, checkpoint_path=path)` loads them.

        Args:
            path: A `.safetensors` file; it is replaced atomically.
            classes: Class names in the order of the logits, kept in the file's card.
            accuracy: Top-1 or, with several labels per image, mean average precision in percent, to keep in the card.
            state: The weights, if this process does not hold all of them.

        Returns:
            The SHA-256 of the file.
        """
        weights = self.model.state_dict() if state is None else state
        return save_weights(path, weights, self.card(classes, accuracy))

    def card(self, classes: tuple[str, ...] = (), accuracy: float | None = None) -> Card:
        """Return the card that belongs to this model's weights; see `save` for the arguments."""
        return Card(
            # A module may differ from the architecture of its name in ways that no weights show.
            architecture=MODULE + self.name if self._passed else self.name,
            args=self.model_args,
            num_classes=self.num_classes,
            resolution=self.resolution,
            mean=tuple(self.mean.flatten().tolist()),
            std=tuple(self.std.flatten().tolist()),
            crop_fraction=self.crop_fraction,
            classes=classes or self.classes,
            top1=None if self.multi_label else accuracy,
            map=accuracy if self.multi_label else None,
            multi_label=self.multi_label,
            license=self.license,
        )

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{self.name} ({parameters / 1e6:.2f} M parameters, {self.resolution} px, {self.num_classes} classes)"


def _license(model: nn.Module, spec: ModelSpec) -> str | None:
    """Return the licence of the published weights in a model, if it is known."""
    if spec.card is not None:
        return spec.card.license
    if not spec.pretrained:
        return None
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("license")
    return None if stated in (None, "unknown") else str(stated)


def _built_side(model: nn.Module, config: dict[str, Any]) -> int:
    """Return the image side for which a transformer was built, or that of its timm configuration."""
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return int((built or config["input_size"])[-1])
