"""The frozen teacher: tokens, logits and a differentiable tail."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.method.outputs import MapShape, TeacherOutputs
from scalekd.models.build import ImageModel
from scalekd.models.families import TAIL_BLOCKS, family_of
from scalekd.models.pairing import paper_heads
from scalekd.models.sources import TORCHVISION, create, described, is_timm, timm_config
from scalekd.models.weights import FILE_ENDINGS

_USUAL, _DEAR = 224, 1.5  # pixels that costs are compared with, and how many times the tokens are worth a line


class Teacher(ImageModel):
    """A pre-trained vision transformer that teaches; always frozen and in eval mode.

    Args:
        model: A timm name or `hf-hub:NAME` (its hub weights are loaded), a weights file written by scalekd, the folder
            of `adapt`, of a finished run or of timm's, or a timm module.
        weights: A safetensors file for a timm name, instead of its hub weights.
        num_classes: Width of the head; by default what the weights have.
        resolution: Image side in pixels it sees; images of another size are resized (bicubic, antialiased).
        tail_blocks: Blocks in the tail of an isotropic teacher (ViT, BEiT, EVA, ...); a Swin's is its last stage.
        pretrained: False for random weights.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If the name is unknown, the weights do not fit, the model has no patch tokens or not at this
            resolution.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        resolution: int | None = None,
        tail_blocks: int = TAIL_BLOCKS,
        pretrained: bool = True,
        **model_args: Any,
    ) -> None:
        if not isinstance(model, nn.Module) and pretrained and weights is None:
            check_architecture(str(model), model_args)
        super().__init__(
            model,
            weights=weights,
            num_classes=num_classes,
            resolution=resolution,
            pretrained=pretrained,
            **model_args,
        )
        self._family = family_of(self.model, self.name, tail_blocks)
        check_patches(self)
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
        """What the tail is made of, for people."""
        return self._family.tail_name

    @property
    def heads(self) -> tuple[int, int]:
        """The paper's attention heads of (CAP_prev, CAP_last) for this teacher."""
        return paper_heads(self.name)

    def train(self, mode: bool = True) -> Self:
        """A teacher is always in eval mode, whatever a parent is set to."""
        return super().train(False)

    def weights_hash(self) -> str:
        """SHA-256 of the weights as they were loaded, names and float32 values; to be asked before `hold_weights`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            value = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
            digest.update(value.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def hold_weights(self, dtype: torch.dtype) -> Self:
        """Hold the weights of matrix products in `dtype`, for use under autocast to it.

        Autocast casts exactly these before each product, so results are the same to the bit; memory and the
        casts are saved. Norms, embeddings and biases on attention stay in float32.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutputs:
        """RGB images in [0, 1] `[B, 3, h, w]` -> tokens `[B, N, D]` and logits `[B, K]` (None without a head).

        Under autocast both are of its type, on every device: so they can be kept in it without a loss.
        """
        features = self.run("teacher", self.model.forward_features, images)
        tokens = self._family.read(features)
        logits = self.model.forward_head(features) if self.num_classes else None
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
            tokens, logits = tokens.to(dtype), None if logits is None else logits.to(dtype)
        return TeacherOutputs(tokens, logits)

    def tail(self, tokens: Tensor) -> Tensor:
        """The last stage and final norm, `[B, N', D'] -> [B, N, D]`; gradients reach `tokens` only."""
        return self._family.tail(tokens)


def check_architecture(name: str, model_args: dict[str, Any]) -> None:
    """Make sure that a name is of an architecture that can teach, before its weights are fetched.

    Args:
        name: As the user gives it; files and folders pass, as they are at hand and are checked when they are read.
        model_args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If it cannot.
    """
    if name.startswith(TORCHVISION):
        raise UserError(f"teacher: {name} is none of timm's, whose tokens are known; name timm's own of this kind")
    if (model := outline(name, model_args)) is not None:
        family_of(model, name)


def outline(name: str, model_args: dict[str, Any]) -> nn.Module | None:
    """A model of timm's without memory for its weights; None where it is not named, or can only be built in full.

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
    """A line on a vision transformer that takes much longer than at 224 pixels, where nobody chose its resolution.

    Args:
        model: The transformer.
        flag: What chooses the resolution.
    """
    times = (model.resolution / _USUAL) ** 2
    if model.resolution_given or times < _DEAR:
        return None
    patch = int(model.model.patch_embed.feat_ratio())
    return (
        f"it sees {model.resolution} px, its default: {(model.resolution // patch) ** 2:,} tokens an image, "
        f"{times:.1f} times as many as at {_USUAL} px, and at least as many times the time; "
        f"{flag} {_USUAL // patch * patch} takes less"
    )


def check_patches(model: ImageModel, key: str = "teacher_resolution") -> None:
    """Make sure that a vision transformer's patches fill its images.

    Args:
        model: The transformer.
        key: What the user gives the resolution with, for the message.

    Raises:
        UserError: If they do not.
    """
    patch = int(model.model.patch_embed.feat_ratio())
    if model.resolution % patch:
        lower = model.resolution // patch * patch
        raise UserError(
            f"{key}: {model.name} has patches of {patch} pixels, which {model.resolution} pixels are no multiple of; "
            f"use {lower or patch} or {lower + patch}"
        )
