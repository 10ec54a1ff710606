"""The frozen teacher model, which gives tokens, logits and a differentiable tail."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.keys import TRANSFORMERS
from scalekd.methods.outputs import MapShape, TeacherOutputs
from scalekd.models.failure import naming_model
from scalekd.models.families import TAIL_BLOCKS, Family, LogitsOnly, can_teach, family_of, token_side
from scalekd.models.image_model import ImageModel
from scalekd.models.named_tokens import NamedTokens
from scalekd.models.pairing import paper_heads
from scalekd.models.sources import PYTHON, TORCHVISION, create, described, is_timm, timm_config
from scalekd.models.transformers_models import tokens_of
from scalekd.models.weights import FILE_ENDINGS

_USUAL, _DEAR = 224, 1.5  # reference image side in pixels, and the ratio of tokens from which a note is printed


class Teacher(ImageModel):
    """A pre-trained model used as the teacher; always frozen and in eval mode.

    Args:
        model: A timm name, `hf-hub:NAME` or `transformers:NAME` (its hub weights are loaded), a weights file written by
            scalekd, a folder of `adapt`, of a finished run or in timm's format, `python:module.callable`, or a module.
        weights: A safetensors file for a timm name, instead of its hub weights.
        num_classes: Width of the head; by default that of the weights.
        resolution: Image side in pixels; images of another size are resized to it (bicubic, antialiased).
        tail_blocks: Number of blocks in the tail of an isotropic teacher (ViT, BEiT, EVA, ...); that of a Swin or
            ConvNeXt is its last stage.
        tokens: The module whose output is the final tokens, for teachers other than timm's; see `NamedTokens`.
        tail: The modules that TPP runs on tokens, for the same teachers. Without them there is no tail.
        logits_only: Whether logits are all that is needed of it, so that it may be any classifier.
        pretrained: False for random weights.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If the name is unknown, the weights do not fit, the tokens of the model are not known, or its patches
            do not fill images of this resolution.
    """

    takes_transformers = True

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        resolution: int | None = None,
        tail_blocks: int = TAIL_BLOCKS,
        tokens: str | None = None,
        tail: Sequence[str] = (),
        logits_only: bool = False,
        pretrained: bool = True,
        **model_args: Any,
    ) -> None:
        name = "" if isinstance(model, nn.Module) else str(model)
        if name.startswith(PYTHON):
            pretrained = False  # the user's code loads its own weights
        if name and pretrained and weights is None and tokens is None and not logits_only:
            check_architecture(name, model_args)
        super().__init__(
            model,
            weights=weights,
            num_classes=num_classes,
            resolution=resolution,
            pretrained=pretrained,
            **model_args,
        )
        check_patches(self)
        self._tail_only = False
        super().train(False)
        if self.name.startswith(TRANSFORMERS):
            tokens = tokens_of(self.model) if tokens is None else tokens
            if "mean" not in self.model.pretrained_cfg:
                self.notes = (*self.notes, "it states no normalisation: ImageNet's mean and deviation are used")
        if tail and tokens is None:
            raise UserError("teacher_tail: is for a teacher with teacher_tokens; for timm's, tail_blocks sets the tail")
        if tokens is None and logits_only and not can_teach(self.model):
            example = self.prepare(torch.full((1, 3, self.resolution, self.resolution), 0.5))
            with naming_model("teacher", self.name, example.shape, "be run on"):
                self._family: Family = LogitsOnly(self.model, example, self.name)
        elif tokens is None:
            self._family = family_of(self.model, self.name, self.resolution, tail_blocks)
        else:
            example = self.prepare(torch.full((1, 3, self.resolution, self.resolution), 0.5))
            with naming_model("teacher", self.name, example.shape, "be run on"):
                self._family = NamedTokens(self.model, tokens, tail, example, self.name)
        self.num_classes = self._family.num_classes
        self.requires_grad_(False)
        self.train(False)

    @property
    def tokens(self) -> MapShape:
        """Final tokens: grid `H x W`, width `D`."""
        return self._family.tokens

    @property
    def tail_input(self) -> MapShape:
        """Tokens that `tail` takes: grid `H' x W'`, width `D'`."""
        return self._family.tail_input

    @property
    def tail_name(self) -> str:
        """What the tail consists of, human-readable; empty without a tail."""
        return self._family.tail_name

    @property
    def is_named(self) -> bool:
        """Whether its tokens come from a module that was named, not from one of timm's families."""
        return isinstance(self._family, NamedTokens)

    @property
    def note(self) -> str:
        """What a user should know about this kind of teacher; empty if there is nothing."""
        return self._family.note

    @property
    def heads(self) -> tuple[int, int]:
        """The paper's attention heads of (CAP_prev, CAP_last) for this teacher."""
        return paper_heads(self.name)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever mode the parent module is set to."""
        return super().train(False)

    def outputs(self, images: Tensor) -> object:
        return self._family.compute(images)

    def weights_hash(self) -> str:
        """Return the SHA-256 of the loaded weights' names and float32 values; call it before `hold_weights`.

        Raises:
            RuntimeError: After `keep_tail_only`.
        """
        self._check_complete()
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            value = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
            digest.update(value.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def hold_weights(self, dtype: torch.dtype) -> Self:
        """Convert the weights of matrix products to `dtype`, for use under autocast to it.

        Autocast casts exactly these weights before each product, so results of timm's models are bitwise equal, and
        memory and casts are saved. Norms, embeddings and attention biases stay in float32. Models of transformers may
        compute their positions in the type of their weights.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        return self

    def _check_complete(self) -> None:
        if self._tail_only:
            raise RuntimeError("teacher: its weights were freed; only its tail can be run")

    def keep_tail_only(self) -> None:
        """Free the weights that only `forward` needs, for a run whose teacher outputs come from a cache.

        `tail` still works; `forward` and `weights_hash` raise a RuntimeError from now on.
        """
        kept = {id(parameter) for module in self._family.tail_modules() for parameter in module.parameters()}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.data = parameter.data.new_empty(0)
        self._tail_only = True

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutputs:
        """Compute tokens `[B, N, D]` and logits `[B, K]` (None without a head) of RGB images in [0, 1] `[B, 3, h, w]`.

        Under autocast both are of the autocast type on every device, so that they can be stored in it without loss.
        """
        self._check_complete()
        tokens, logits = self.run("teacher", self._family.compute, images)
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
            tokens, logits = tokens.to(dtype), None if logits is None else logits.to(dtype)
        return TeacherOutputs(tokens, logits)

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the last stage and the final norm, `[B, N', D'] -> [B, N, D]`; gradients reach `tokens` only."""
        return self._family.tail(tokens)


def check_architecture(name: str, model_args: dict[str, Any]) -> None:
    """Check that an architecture can be a teacher before its weights are fetched.

    Args:
        name: The name as the user specifies it; files and folders are not checked here, but when they are read.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If it cannot be a teacher.
    """
    if name.startswith(TORCHVISION):
        raise UserError(
            f"teacher: {name} is not a timm model, so its tokens are not known; name the module that gives them with "
            "teacher_tokens, or use timm's model of this kind"
        )
    if (model := outline(name, model_args)) is not None:
        family_of(model, name, _USUAL)


def outline(name: str, model_args: dict[str, Any]) -> nn.Module | None:
    """Build a timm model on the meta device, without memory for its weights.

    Returns:
        The model; None if `name` is not a timm name, or the model cannot be built on the meta device.

    Raises:
        UserError: If timm does not know the name.
    """
    if not is_timm(name) or name.endswith(FILE_ENDINGS) or Path(name).exists():
        return None
    about = described(name)
    if about is not None:
        name, model_args = about.architecture, about.args | model_args
    timm_config(name)
    try:
        with torch.device("meta"):
            return create(name, pretrained=False, model_args=model_args)
    except UserError:
        return None


def resolution_note(model: ImageModel, flag: str) -> str | None:
    """Return a note if a teacher's default resolution takes much longer than 224 pixels, otherwise None.

    Args:
        model: The teacher.
        flag: The flag that sets the resolution.
    """
    times = (model.resolution / _USUAL) ** 2
    if model.resolution_given or times < _DEAR:
        return None
    patch = token_side(model.model)
    if patch is None and isinstance(model, Teacher):
        patch = model.resolution // model.tokens.height
    if patch is None:
        return None
    return (
        f"it sees {model.resolution} px, its default: {(model.resolution // patch) ** 2:,} tokens an image, "
        f"{times:.1f} times as many as at {_USUAL} px, and at least as many times the time; "
        f"{flag} {_USUAL // patch * patch} takes less"
    )


def check_patches(model: ImageModel, key: str = "teacher_resolution") -> None:
    """Check that the resolution of a teacher is a multiple of a token's side in pixels, if that is known.

    Args:
        model: The teacher.
        key: The key of the resolution, for messages.

    Raises:
        UserError: If it is not.
    """
    patch = token_side(model.model)
    if patch is not None and model.resolution % patch:
        lower = model.resolution // patch * patch
        raise UserError(
            f"{key}: {model.name} has patches of {patch} pixels, and {model.resolution} is not a multiple of {patch}; "
            f"use {lower or patch} or {lower + patch}"
        )
