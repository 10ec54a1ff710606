"""What a teacher provides beyond logits: final tokens and a tail. One class per family of timm models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.methods.outputs import MapShape, TeacherOutputs

TAIL_BLOCKS = 2


class Family(Protocol):
    """Tokens, logits and tail of one kind of teacher.

    Attributes:
        tokens: Grid and width of the final tokens.
        tail_input: Grid and width of the tokens that the tail takes.
        tail_name: What the tail consists of, human-readable; empty without a tail.
        num_classes: Width of the logits; 0 without any.
        note: What a user should know about this kind of teacher; empty if there is nothing.
    """

    tokens: MapShape
    tail_input: MapShape
    tail_name: str
    num_classes: int
    note: str

    def compute(self, images: Tensor) -> TeacherOutputs:
        """Return the outputs for prepared images `[B, 3, h, w]`."""
        ...

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the tail on tokens: `[B, N', D'] -> [B, N, D]`."""
        ...

    def tail_modules(self) -> list[nn.Module]:
        """Return the modules that the tail runs."""
        ...


class LogitsOnly:
    """Logits of any model, for methods that compare nothing else; it gives empty tokens and has no tail.

    Args:
        model: A model that returns logits `[B, K]`, or an object with `logits`.
        images: Prepared images `[1, 3, side, side]`, to find the width of the logits with.
        name: The model's name, for messages.

    Raises:
        UserError: If it returns no logits.
    """

    tail_name = ""
    note = "only its logits are used"

    def __init__(self, model: nn.Module, images: Tensor, name: str) -> None:
        self._model = model
        self.tokens = self.tail_input = MapShape(0, 0, 0)
        with torch.no_grad():
            logits = self._logits(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(f"teacher: {name} returns {found}, not logits [B, K], which the method learns from")
        self.num_classes = logits.shape[1]

    def compute(self, images: Tensor) -> TeacherOutputs:
        return TeacherOutputs(images.new_empty(len(images), 0, 0), self._logits(images))

    def tail(self, tokens: Tensor) -> Tensor:
        return tokens

    def tail_modules(self) -> list[nn.Module]:
        return []

    def _logits(self, images: Tensor) -> Tensor:
        output = self._model(images)
        found: Tensor = getattr(output, "logits", output)
        return found


class TimmFamily(ABC):
    """A family of timm models, which compute features and from these logits."""

    note = ""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.num_classes = int(model.num_classes)

    def compute(self, images: Tensor) -> TeacherOutputs:
        features = self._model.forward_features(images)
        logits = self._model.forward_head(features) if self.num_classes else None
        return TeacherOutputs(self.read(features), logits)

    @abstractmethod
    def read(self, features: Tensor) -> Tensor:
        """Convert the output of timm's `forward_features` to final tokens `[B, N, D]`."""


class SwinFamily(TimmFamily):
    """Swin v1 and v2: the tail is patch merging, last stage and norm; 14x14x768 -> 7x7x1536 for Swin-L at 224 px."""

    def __init__(self, model: SwinTransformer | SwinTransformerV2) -> None:
        super().__init__(model)
        stage = model.layers[-1]
        (height, width), channels = stage.input_resolution, model.feature_info[-2]["num_chs"]
        self.tail_input = MapShape(channels, height, width)
        self.tokens = MapShape(model.num_features, *stage.output_resolution)
        self.tail_name = f"patch merging + {len(stage.blocks)} blocks of the last stage + norm"

    def read(self, features: Tensor) -> Tensor:
        return features.flatten(1, 2)  # BxHxWxD -> BxNxD

    def tail(self, tokens: Tensor) -> Tensor:
        height, width = self.tail_input.height, self.tail_input.width
        grid = tokens.reshape(len(tokens), height, width, -1)  # BxN'xD' -> BxH'xW'xD'
        return self.read(self._model.norm(self._model.layers[-1](grid)))

    def tail_modules(self) -> list[nn.Module]:
        return [self._model.layers[-1], self._model.norm]


class ConvNeXtFamily(TimmFamily):
    """ConvNeXt, of DINOv3 and others: the tail is the last stage, with its downsampling, and the norm.

    14x14x384 -> 7x7x768 for ConvNeXt-T at 224 px. The positions of the last map are the tokens. Its norm comes after
    pooling, and is applied to each token instead, as DINOv3 does.
    """

    note = "a convolutional network; the paper's teachers are vision transformers"

    def __init__(self, model: ConvNeXt, side: int) -> None:
        super().__init__(model)
        shapes = [
            MapShape(info["num_chs"], side // info["reduction"], side // info["reduction"])
            for info in model.feature_info[-2:]
        ]
        self.tail_input, self.tokens = shapes
        self._token_norm = getattr(model.head, "norm", nn.Identity())
        self.tail_name = f"downsampling + {len(model.stages[-1].blocks)} blocks of the last stage + norm"

    def read(self, features: Tensor) -> Tensor:
        tokens: Tensor = self._token_norm(features).flatten(2).transpose(1, 2)  # BxDxHxW -> BxNxD
        return tokens

    def tail(self, tokens: Tensor) -> Tensor:
        height, width = self.tail_input.height, self.tail_input.width
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)  # BxN'xD' -> BxD'xH'xW'
        return self.read(self._model.norm_pre(self._model.stages[-1](grid)))

    def tail_modules(self) -> list[nn.Module]:
        return [self._model.stages[-1], self._model.norm_pre, self._token_norm]


class ViTFamily(TimmFamily):
    """Plain ViT (DeiT, DINOv2, CLIP, SigLIP, ...): the tail is the last `tail_blocks` blocks and the norm.

    The tail takes patch tokens only, because a student has no counterpart of class and register tokens. The patch
    tokens attend to each other as in the whole model, but not to prefix tokens.
    """

    def __init__(self, model: VisionTransformer | Beit | Eva, tail_blocks: int) -> None:
        depth = len(model.blocks)
        if not 1 <= tail_blocks <= depth:
            raise UserError(f"tail_blocks: {tail_blocks} is not between 1 and the teacher's {depth} blocks")
        super().__init__(model)
        self._first = depth - tail_blocks
        # Models that normalise after pooling have no final norm on tokens: their norm is applied to each token instead.
        self._token_norm = model.fc_norm if isinstance(model.norm, nn.Identity) else nn.Identity()
        self.tokens = self.tail_input = MapShape(model.embed_dim, *model.patch_embed.grid_size)
        self.tail_name = f"last {tail_blocks} of {depth} blocks + norm"

    def read(self, features: Tensor) -> Tensor:
        tokens: Tensor = self._token_norm(features[:, self._model.num_prefix_tokens :])
        return tokens

    def tail(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self._token_norm(self._model.norm(self._run_blocks(tokens)))
        return normed

    def tail_modules(self) -> list[nn.Module]:
        return [*self._model.blocks[self._first :], self._model.norm, self._token_norm]

    def _run_blocks(self, tokens: Tensor) -> Tensor:
        for block in self._model.blocks[self._first :]:
            tokens = block(tokens)
        return tokens


class _PositionalFamily(ViTFamily, ABC):
    """ViTs whose blocks use positions (a relative-position bias, rotary embeddings) that include prefix tokens.

    Their attention expects prefix tokens. The tail inserts zeros for them, masks them in attention, and drops them.
    """

    def _run_blocks(self, tokens: Tensor) -> Tensor:
        prefix = self._model.num_prefix_tokens
        tokens = torch.cat([tokens.new_zeros(len(tokens), prefix, tokens.shape[-1]), tokens], dim=1)
        mask = tokens.new_zeros(1, 1, 1, tokens.shape[1])
        mask[..., :prefix] = -torch.inf
        for block, options in zip(self._model.blocks[self._first :], self._options(mask), strict=True):
            tokens = block(tokens, **options)
        return tokens[:, prefix:]

    @abstractmethod
    def _options(self, mask: Tensor) -> list[dict[str, Any]]:
        """Return keyword arguments for each tail block that add `mask` `[1, 1, 1, prefix + N]` to attention logits."""


class BeitFamily(_PositionalFamily):
    """BEiT and BEiTv2: a relative-position bias in each block, or a single shared one."""

    def tail_modules(self) -> list[nn.Module]:
        shared = self._model.rel_pos_bias
        return [*super().tail_modules(), *([] if shared is None else [shared])]

    def _options(self, mask: Tensor) -> list[dict[str, Any]]:
        shared = self._model.rel_pos_bias
        # Each block adds the shared bias to its own.
        bias = mask if shared is None else mask + shared()
        return [{"shared_rel_pos_bias": bias} for _ in self._model.blocks[self._first :]]


class RotaryFamily(_PositionalFamily):
    """EVA-02, DINOv3 and others with rotary positions, equal in all blocks or learned per block ("mixed")."""

    def tail_modules(self) -> list[nn.Module]:
        return [*super().tail_modules(), self._model.rope]

    def _options(self, mask: Tensor) -> list[dict[str, Any]]:
        model = self._model
        rope = model.rope.get_embed(shape=list(model.patch_embed.grid_size))
        per_block = getattr(model, "rope_mixed", False)  # depth x heads x N x 2*width, otherwise N x 2*width
        indices = range(self._first, len(model.blocks))
        return [{"rope": rope[index] if per_block else rope, "attn_mask": mask} for index in indices]


_TEACHERS = SwinTransformer | SwinTransformerV2 | Beit | Eva | VisionTransformer | ConvNeXt


def can_teach(model: nn.Module) -> bool:
    """Whether a model belongs to a family of teachers, whose tokens and tail are known."""
    return isinstance(model, _TEACHERS)


def token_side(model: Any) -> int | None:
    """Return the side in pixels of the part of an image that a token stands for; None if it is not known."""
    if isinstance(model, ConvNeXt):
        return int(model.feature_info[-1]["reduction"])
    return int(model.patch_embed.feat_ratio()) if can_teach(model) else None


def family_of(model: nn.Module, name: str, side: int, tail_blocks: int = TAIL_BLOCKS) -> Family:
    """Return the family of a timm model.

    Args:
        model: A timm model.
        name: Its name, for messages.
        side: Side in pixels of its images.
        tail_blocks: Number of blocks in the tail of an isotropic model; that of others is their last stage.

    Raises:
        UserError: If its tokens are not known, or it has fewer than `tail_blocks` blocks.
    """
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        return SwinFamily(model)
    if isinstance(model, ConvNeXt):
        return ConvNeXtFamily(model, side)
    if isinstance(model, Beit):
        return BeitFamily(model, tail_blocks)
    if isinstance(model, Eva) and model.rope is not None:
        return RotaryFamily(model, tail_blocks)
    if isinstance(model, VisionTransformer | Eva):
        return ViTFamily(model, tail_blocks)
    raise UserError(
        f"teacher: {name} is not a vision transformer with patch tokens, nor a ConvNeXt; use one of timm: Swin, ViT, "
        "DeiT, BEiT, EVA, DINO, CLIP, SigLIP, ConvNeXt, or name the module that gives its tokens with teacher_tokens, "
        "or take method kd, which needs none"
    )
