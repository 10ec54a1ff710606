"""Projectors of a student map to ViT-like tokens: CAP (ScaleKD section 3.1), and a linear one, which is ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.methods.outputs import MapShape
from scalekd.methods.parts import STEM_NORMS, STEMS
from scalekd.methods.registry import MethodKeys

DEFAULTS = MethodKeys()


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of `[B, C, h, w]`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CrossAttention(nn.Module):
    """Multi-head cross attention with a fixed factor on its logits and no residual.

    Attributes:
        fused_attn: Whether products and softmax are one operation (the name that timm's attentions use).
    """

    def __init__(self, *, context_dim: int, dim: int, num_heads: int, softmax_scale: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = softmax_scale / (dim // num_heads) ** 0.5
        self.fused_attn = True
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim, dim)
        self.v = nn.Linear(context_dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """`query` `[B or 1, Nq, D]`, `context` `[B, M, C]` -> `[B, Nq, D]`."""

        def heads(x: Tensor) -> Tensor:  # B x N x D -> B x heads x N x D/heads
            return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

        # A learned query is the same for every image: it is projected once and then expanded without a copy.
        q = heads(self.q(query)).expand(len(context), -1, -1, -1)
        k, v = heads(self.k(context)), heads(self.v(context))
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            out = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        attended: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return attended


class StemConvolution(nn.Conv2d):
    """CAP's convolution with an odd kernel, stride 1 and "same" padding: `[B, C, h, w]` -> the same shape.

    Attributes:
        as_product: Whether it is computed as one matrix product of its windows. The result is the same; which of the
            two is faster depends on the processor.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)

    as_product = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.as_product:
            # 3x3 convolutions of CAP's widths are slower channels-last on the CPU.
            return super().forward(x.contiguous() if x.device.type == "cpu" else x)
        (_, _, h, w), (kernel, _) = x.shape, self.kernel_size
        edge = kernel // 2
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge))
        parts = [padded[:, i : i + h, j : j + w] for i in range(kernel) for j in range(kernel)]
        windows = torch.cat(parts, -1)  # B x h x w x (kernel*kernel*C)
        products = F.linear(windows, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return products.permute(0, 3, 1, 2)


def _stem(channels: int, kind: str, norm: str) -> nn.Sequential:
    """Build CAP's "patchify stem": convolution, norm, ReLU on `[B, C, h, w]`; empty for `none`."""
    if kind not in STEMS:
        raise ValueError(f"stem: {kind!r} is not one of {', '.join(STEMS)}")
    if norm not in STEM_NORMS:
        raise ValueError(f"stem_norm: {norm!r} is not one of {', '.join(STEM_NORMS)}")
    stem = nn.Sequential()
    if kind != "none":
        stem.add_module("conv", StemConvolution(channels, 3 if kind == "conv3x3" else 1))
        stem.add_module("norm", nn.BatchNorm2d(channels) if norm == "batchnorm" else LayerNorm2d(channels))
        stem.add_module("act", nn.ReLU())
    return stem


class CrossAttentionProjector(nn.Module):
    """CAP: a student map `[B, C, h, w]` -> tokens `[B, Nq, Dq]` on the teacher's grid.

    The queries lie on the teacher's grid, so that no feature is resized if the two grids differ.

    Args:
        student: Shape of the student map.
        tokens: Shape of the tokens to return.
        num_heads: Attention heads, a divisor of `tokens.channels`.
        softmax_scale: Factor on the attention logits in addition to `1 / sqrt(head width)`.
        stem: `conv3x3` (the paper's), `conv1x1`, or `none` to use the map as is.
        stem_norm: `batchnorm` or `layernorm2d`, after the stem's convolution.
        learned_query: Whether the query is a learned table; otherwise it is passed to `forward`.

    Raises:
        ValueError: If `num_heads` does not divide the token width or `stem` or `stem_norm` is unknown.
    """

    def __init__(
        self,
        student: MapShape,
        tokens: MapShape,
        *,
        num_heads: int,
        softmax_scale: float = DEFAULTS.softmax_scale,
        stem: str = DEFAULTS.stem,
        stem_norm: str = "batchnorm",
        learned_query: bool = True,
    ) -> None:
        super().__init__()
        channels, dim = student.channels, tokens.channels
        if num_heads < 1 or dim % num_heads:
            fits = ", ".join(str(n) for n in range(1, 33) if dim % n == 0)
            raise ValueError(f"heads: {num_heads} does not divide the teacher's token width {dim}; {fits} do")
        self.stem = _stem(channels, stem, stem_norm)
        self.pos_embed = nn.Parameter(torch.empty(1, channels, student.height, student.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.query = nn.Parameter(torch.randn(1, tokens.positions, dim)) if learned_query else None
        self.query_proj = nn.Linear(dim, dim)
        self.attn = CrossAttention(context_dim=channels, dim=dim, num_heads=num_heads, softmax_scale=softmax_scale)
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential()
        self.ffn.add_module("fc1", nn.Linear(dim, 4 * dim))
        self.ffn.add_module("act", nn.ReLU())
        self.ffn.add_module("fc2", nn.Linear(4 * dim, dim))

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """Project a student map.

        Args:
            features: `[B, C, h, w]`.
            query: Input-dependent query `[B, Nq, Dq]`; None if the projector has a learned table.

        Returns:
            Tokens `[B, Nq, Dq]`.
        """
        query = self.query if query is None else query
        context = (self.stem(features) + self.pos_embed).flatten(2).transpose(1, 2)  # BxCxhxw -> Bx(hw)xC
        f = self.norm(self.attn(F.relu(self.query_proj(query)), context))
        tokens: Tensor = f + self.ffn(f)  # the residual is the normalised f
        return tokens


class LinearProjector(nn.Conv2d):
    """A 1x1 convolution of a student map `[B, C, h, w]`, resized bilinearly to the teacher's grid: `[B, N, D]`.

    Args:
        student: Shape of the student map.
        tokens: Shape of the tokens to return.
    """

    def __init__(self, student: MapShape, tokens: MapShape) -> None:
        super().__init__(student.channels, tokens.channels, 1)
        self.grid = (tokens.height, tokens.width)

    def forward(self, features: Tensor) -> Tensor:
        projected = super().forward(features)
        if projected.shape[-2:] != self.grid:
            projected = F.interpolate(projected, self.grid, mode="bilinear", align_corners=False)
        return projected.flatten(2).transpose(1, 2)  # BxDxHxW -> BxNxD
