"""The released students as mmpretrain builds them: its names, its order of operations, any width and depth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_module(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    module = nn.Module()
    module.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    module.bn = nn.BatchNorm2d(outputs)
    return module


class FFN(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(hidden, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def patch_embed(width: int, patch: int, norm: bool = False) -> nn.Module:
    module = nn.Module()
    module.projection = nn.Conv2d(3, width, patch, patch)
    if norm:
        module.norm = nn.LayerNorm(width)
    return module


class Classified(nn.Module):
    """A backbone that gives `[B, C]`, and mmpretrain's linear head."""

    def __init__(self, backbone: nn.Module, width: int, classes: int = 3) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x))  # type: ignore[no-any-return, operator]


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if stride != 1 else []
            shortcut = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.downsample = nn.Sequential(*pool, *shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNetV1d(nn.Module):
    def __init__(self, depths: tuple[int, ...], stem: int, base: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_module(3, stem // 2, 2), conv_module(stem // 2, stem // 2), conv_module(stem // 2, stem)
        )
        inputs = stem
        for stage, depth in enumerate(depths):
            middle = base * 2**stage
            blocks = [
                Bottleneck(inputs if i == 0 else 4 * middle, middle, 2 if stage and not i else 1) for i in range(depth)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = 4 * middle

    def forward(self, x: Tensor) -> Tensor:
        for part in self.stem:
            x = F.relu(part.bn(part.conv(x)))  # type: ignore[operator]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))


class WindowMSA(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        rows = torch.arange(0, (2 * window - 1) * window, 2 * window - 1)
        steps = (rows[:, None] + torch.arange(window)[None]).reshape(1, -1)
        self.register_buffer("relative_position_index", (steps + steps.T).flip(1).contiguous())
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Windows `[B, N, C]`, without a mask."""
        count, n, width = x.shape
        q, k, v = self.qkv(x).reshape(count, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        index: Any = self.relative_position_index
        bias = self.relative_position_bias_table[index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        attention = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Without a shift: maps of one window have none."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Module()
        self.attn.w_msa = WindowMSA(width, heads, window)
        self.ffn = FFN(width, 4 * width)
        self.window = window

    def forward(self, x: Tensor, side: int) -> Tensor:
        count, _, width = x.shape
        w = self.window
        y = self.norm1(x).view(count, side // w, w, side // w, w, width).transpose(2, 3).reshape(-1, w * w, width)
        y = self.attn.w_msa(y).view(count, side // w, side // w, w, w, width).transpose(2, 3)  # type: ignore[operator]
        x = x + y.reshape(count, -1, width)
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """One block a stage is run as it is; of the second, which would shift, only the names are here."""

    def __init__(
        self, width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, sides: tuple[int, ...]
    ):
        super().__init__()
        self.patch_embed = patch_embed(width, 4, norm=True)
        self.stages = nn.ModuleList()
        self.sides = sides
        for index, (depth, number) in enumerate(zip(depths, heads, strict=True)):
            stage, channels = nn.Module(), width * 2**index
            stage.blocks = nn.ModuleList(SwinBlock(channels, number, min(window, sides[index])) for _ in range(depth))
            if index < len(depths) - 1:
                stage.downsample = nn.Module()
                stage.downsample.norm = nn.LayerNorm(4 * channels)
                stage.downsample.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
            self.stages.append(stage)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        embed: Any = self.patch_embed
        x = embed.norm(embed.projection(x).flatten(2).transpose(1, 2))
        stage: Any
        for stage, side in zip(self.stages, self.sides, strict=True):
            for block in stage.blocks:
                x = block(x, side)
            if hasattr(stage, "downsample"):
                grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
                x = stage.downsample.reduction(stage.downsample.norm(F.unfold(grid, 2, stride=2).transpose(1, 2)))
        return self.norm3(x).mean(1)  # type: ignore[no-any-return]


class ViTLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = FFN(width, 4 * width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        attn: Any = self.attn
        q, k, v = attn.qkv(self.ln1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.ffn(self.ln2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """No class token, patch tokens normalised and then pooled; `kept` has the unused token of older files."""

    def __init__(self, width: int, depth: int, heads: int, grid: int, patch: int, kept: bool = False) -> None:
        super().__init__()
        self.patch_embed = patch_embed(width, patch)
        self.pos_embed = nn.Parameter(torch.randn(1, grid**2 + kept, width))
        if kept:
            self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(ViTLayer(width, heads) for _ in range(depth))
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.projection(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
        x = x + self.pos_embed[:, int(self.kept) :]
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x).mean(1)  # type: ignore[no-any-return]


class MixerBlock(nn.Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mix, self.channel_mix = FFN(tokens, width // 2), FFN(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    def __init__(self, width: int, depth: int, grid: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed(width, patch)
        self.layers = nn.ModuleList(MixerBlock(width, grid**2) for _ in range(depth))
        self.norm1 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.projection(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
        for layer in self.layers:
            x = layer(x)
        return self.norm1(x).mean(1)  # type: ignore[no-any-return]


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width, eps=1e-6)
        self.pointwise_conv1, self.pointwise_conv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise_conv(x)).permute(0, 2, 3, 1)
        y = self.pointwise_conv2(F.gelu(self.pointwise_conv1(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """`maps`: a norm for each stage's map, so that the last one comes before pooling."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], maps: bool = False) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        self.downsample_layers.extend(
            nn.Sequential(LayerNorm2d(a, eps=1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
            for depth, width in zip(depths, widths, strict=True)
        )
        for stage in range(4) if maps else (3,):
            self.add_module(f"norm{stage}", LayerNorm2d(widths[stage], eps=1e-6))
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        norm3: Any = self.norm3
        return (norm3(x).mean((2, 3)) if self.maps else norm3(x.mean((2, 3), keepdim=True)).flatten(1)).contiguous()  # type: ignore[no-any-return]


def _conv_dw(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """As the authors wrote it: 12 parts in `model`, the last two in `s4`."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        plan = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        self.model = nn.Sequential(first, *(_conv_dw(*part) for part in plan + [(512, 512, 1)] * 5))
        self.s4 = nn.Sequential(_conv_dw(512, 1024, 2), _conv_dw(1024, 1024, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.s4(self.model(x)).mean((2, 3))  # type: ignore[no-any-return]
