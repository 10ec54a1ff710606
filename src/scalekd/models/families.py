"""What a teacher must offer beyond logits: final patch tokens and a tail. One class a family of timm models."""

from __future__ import annotations

from typing import Protocol

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.method.outputs import MapShape


class Family(Protocol):
    """Tokens and tail of one kind of vision transformer."""

    tokens: MapShape
    tail_input: MapShape
    tail_name: str

    def read(self, features: Tensor) -> Tensor:
        """Output of timm's `forward_features` -> final patch tokens `[B, N, D]`."""
        ...

    def tail(self, tokens: Tensor) -> Tensor:
        """`[B, N', D'] -> [B, N, D]`."""
        ...


class SwinFamily:
    """Swin v1: patch merging, last stage and norm are the tail; 14x14x768 -> 7x7x1536 for Swin-L at 224 px."""

    def __init__(self, model: SwinTransformer) -> None:
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


class ViTFamily:
    """Plain ViT: the last `tail_blocks` blocks and norm are the tail, on patch tokens only.

    Class and register tokens take no part in the tail: a student has nothing that stands for them.
    """

    def __init__(self, model: VisionTransformer, tail_blocks: int) -> None:
        if not 1 <= tail_blocks <= len(model.blocks):
            raise UserError(f"tail_blocks: {tail_blocks} is not between 1 and the teacher's {len(model.blocks)} blocks")
        self._model = model
        self._blocks = model.blocks[-tail_blocks:]
        # Models that normalise after pooling have no final norm on tokens: theirs is applied to each token.
        self._token_norm = model.fc_norm if isinstance(model.norm, nn.Identity) else nn.Identity()
        self.tokens = self.tail_input = MapShape(model.embed_dim, *model.patch_embed.grid_size)
        self.tail_name = f"last {tail_blocks} of {len(model.blocks)} blocks + norm"

    def read(self, features: Tensor) -> Tensor:
        tokens: Tensor = self._token_norm(features[:, self._model.num_prefix_tokens :])
        return tokens

    def tail(self, tokens: Tensor) -> Tensor:
        for block in self._blocks:
            tokens = block(tokens)
        normed: Tensor = self._token_norm(self._model.norm(tokens))
        return normed


def family_of(model: nn.Module, name: str, tail_blocks: int) -> Family:
    """The family of a timm model.

    Raises:
        UserError: If the model is no Swin and no plain ViT.
    """
    if isinstance(model, SwinTransformer):
        return SwinFamily(model)
    if isinstance(model, VisionTransformer):
        return ViTFamily(model, tail_blocks)
    raise UserError(f"teacher: {name} is no vision transformer that can teach: use a Swin or a plain ViT of timm")
