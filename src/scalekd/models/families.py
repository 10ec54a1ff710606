"""What a teacher provides beyond logits: final patch tokens and a tail. One class per family of timm models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.methods.outputs import MapShape

TAIL_BLOCKS = 2


class Family(Protocol):
    """Tokens and tail of one kind of vision transformer."""

    tokens: MapShape
    tail_input: MapShape
    tail_name: str

    def read(self, features: Tensor) -> Tensor:
        """Convert the output of timm's `forward_features` to final patch tokens `[B, N, D]`."""
        ...

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the tail on tokens: `[B, N', D'] -> [B, N, D]`."""
        ...

    def tail_modules(self) -> list[nn.Module]:
        """Return the modules that the tail runs."""
        ...


class SwinFamily:
    """Swin v1 and v2: the tail is patch merging, last stage and norm; 14x14x768 -> 7x7x1536 for Swin-L at 224 px."""

    def __init__(self, model: SwinTransformer | SwinTransformerV2) -> None:
        self._model = model
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


class ViTFamily:
    """Plain ViT (DeiT, DINOv2, CLIP, SigLIP, ...): the tail is the last `tail_blocks` blocks and the norm.

    The tail takes patch tokens only, because a student has no counterpart of class and register tokens. The patch
    tokens attend to each other as in the whole model, but not to prefix tokens.
    """

    def __init__(self, model: VisionTransformer | Beit | Eva, tail_blocks: int) -> None:
        depth = len(model.blocks)
        if not 1 <= tail_blocks <= depth:
            raise UserError(f"tail_blocks: {tail_blocks} is not between 1 and the teacher's {depth} blocks")
        self._model = model
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


def has_patch_tokens(model: nn.Module) -> bool:
    """Whether a model belongs to a family that can be a teacher."""
    return isinstance(model, SwinTransformer | SwinTransformerV2 | Beit | Eva | VisionTransformer)


def family_of(model: nn.Module, name: str, tail_blocks: int = TAIL_BLOCKS) -> Family:
    """Return the family of a timm model.

    Args:
        model: A timm model.
        name: Its name, for messages.
        tail_blocks: Number of blocks in the tail of an isotropic model; a Swin's tail is its last stage.

    Raises:
        UserError: If the model has no patch tokens, or fewer than `tail_blocks` blocks.
    """
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        return SwinFamily(model)
    if isinstance(model, Beit):
        return BeitFamily(model, tail_blocks)
    if isinstance(model, Eva) and model.rope is not None:
        return RotaryFamily(model, tail_blocks)
    if isinstance(model, VisionTransformer | Eva):
        return ViTFamily(model, tail_blocks)
    raise UserError(
        f"teacher: {name} is not a vision transformer with patch tokens; use one of timm: Swin, ViT, DeiT, BEiT, "
        "EVA, DINO, CLIP or SigLIP"
    )
