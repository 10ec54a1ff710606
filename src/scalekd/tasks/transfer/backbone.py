"""Any timm model as four feature maps, of strides 4, 8, 16 and 32."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from scalekd.errors import UserError, first_line
from scalekd.models.build import ImageModel
from scalekd.models.fitting import load_weights
from scalekd.models.sources import create, is_timm
from scalekd.models.weights import Card, save_weights

STRIDES = (4, 8, 16, 32)
_SINGLE = (8, 16, 32)  # the one stride of a ViT or Mixer that a pyramid can be made from


class Backbone(nn.Module):
    """A classifier without its head, as a pyramid of feature maps; all of it can be trained.

    Hierarchical models give their own maps, those with layer norms through a layer norm each, as mmdetection and
    mmsegmentation have it; Swin always shifts its windows. A ViT or Mixer has one stride: its maps are scaled by
    deconvolutions and pooling, all from the last one (ViTDet's simple feature pyramid) or from four depths. Position
    embeddings are resampled to the image. An architecture of a fixed size (Mixer, BEiT) sees the image as tiles of that
    size, which know nothing of each other.

    Args:
        model: A timm name, a weights file of scalekd's, or the folder of a run (or of `adapt`).
        weights: A safetensors file for a timm name.
        pretrained: Whether a timm name without weights takes the hub's; otherwise they are random.
        spread: Whether a model of one stride gives maps of four depths, a quarter of the blocks apart.
        model_args: Further arguments of `timm.create_model`, such as `drop_path_rate`.

    Attributes:
        name: The timm name.
        file: The weights file that was read, if one was.
        channels: Channels of each map.
        strides: Pixels a cell of each map; 4, 8, 16, 32.

    Raises:
        UserError: If there is no such model, or its strides do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str | Path,
        *,
        weights: str | Path | None = None,
        pretrained: bool = True,
        spread: bool = False,
        **model_args: Any,
    ) -> None:
        super().__init__()
        source = weights_in(Path(model)) if Path(model).is_dir() else model
        image_model = ImageModel(source, weights=weights, pretrained=pretrained, **model_args)
        self.name, self.model_args = image_model.name, image_model.model_args
        files = [Path(path) for path in (weights, source) if path is not None and Path(path).is_file()]
        self.file = files[0] if files else None
        self.register_buffer("mean", image_model.mean, persistent=False)
        self.register_buffer("std", image_model.std, persistent=False)
        if not is_timm(self.name) or not hasattr(image_model.model, "forward_intermediates"):
            raise UserError(f"backbone: {self.name} gives no feature maps as timm models do; use one of timm")
        self._tile, self.model = _any_size(image_model)
        self._indices, own = _choose(self.model.feature_info, self.name, spread)
        self.model.prune_intermediate_layers(sorted(set(self._indices)), prune_norm=True)
        widths = [maps.shape[1] for maps in self._try_out(own)]
        self.strides = list(STRIDES)
        normed = own == self.strides and any(isinstance(part, nn.LayerNorm) for part in self.model.modules())
        self.scales = nn.ModuleList(
            LayerNorm2d(width) if normed else _scale(width, stride, wanted)
            for width, stride, wanted in zip(widths, own, STRIDES, strict=True)
        )
        self.channels = [
            width if wanted >= stride else width * wanted // stride
            for width, stride, wanted in zip(widths, own, STRIDES, strict=True)
        ]

    @classmethod
    def from_card(cls, card: Card, *, spread: bool = False) -> Backbone:
        """The backbone, its weights random, of a model that `save_whole` has written."""
        backbone = cls(card.architecture.partition(":")[2], pretrained=False, spread=spread, **card.args)
        backbone.mean.copy_(torch.tensor(card.mean).view_as(backbone.mean))
        backbone.std.copy_(torch.tensor(card.std).view_as(backbone.std))
        return backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB images in [0, 1] `[B, 3, h, w]` -> maps `[B, C, H/4, W/4]` to `[B, C, H/32, W/32]`, finest first.

        `H` and `W` are the next multiples of 32: what is not there, at the right and below, has the mean colour.
        """
        images = (images - self.mean) / self.std
        height, width = images.shape[-2:]
        maps = self._read(F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])))
        return [scale(features) for scale, features in zip(self.scales, maps, strict=True)]

    def _read(self, images: Tensor) -> list[Tensor]:
        """The model's own map for each of the four."""
        if self._tile is None:
            return self._intermediates(images)
        batch, _, height, width = images.shape
        side = self._tile
        images = F.pad(images, (0, -width % side, 0, -height % side))
        rows, columns = images.shape[-2] // side, images.shape[-1] // side
        tiles = images.reshape(batch, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)  # BxRxCx3xSxS
        maps = []
        for features in self._intermediates(tiles.reshape(-1, 3, side, side)):
            channels, cells = features.shape[1], features.shape[-1]
            whole = features.reshape(batch, rows, columns, channels, cells, cells).permute(0, 3, 1, 4, 2, 5)
            whole = whole.reshape(batch, channels, rows * cells, columns * cells)
            maps.append(whole[..., : height * cells // side, : width * cells // side])
        return maps

    def _intermediates(self, images: Tensor) -> list[Tensor]:
        indices = sorted(set(self._indices))
        maps = self.model.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)
        by_index = dict(zip(indices, maps, strict=True))
        return [by_index[index] for index in self._indices]

    def _try_out(self, own: list[int]) -> list[Tensor]:
        """Maps of one empty image, whose strides must be those that timm states."""
        side = self._tile or 2 * STRIDES[-1]
        training = self.model.training
        try:
            with torch.no_grad():
                self.model.eval()
                maps = self._intermediates(torch.zeros(1, 3, side, side))
        except Exception as error:
            raise UserError(
                f"backbone: {self.name} cannot run on images of {side} pixels: {first_line(error)}"
            ) from error
        self.model.train(training)
        wrong = [
            stride
            for stride, features in zip(own, maps, strict=True)
            if features.shape[-2:] != (side // stride, side // stride) or side % stride
        ]
        if wrong:
            raise UserError(f"backbone: {self.name} has no map of stride {wrong[0]} at {side} px; use another model")
        return maps


def weights_in(folder: Path) -> Path:
    """The weights in the folder of a run, of `adapt` or of `export --format timm`.

    Raises:
        UserError: If there are none.
    """
    names = ("student.safetensors", "teacher.safetensors", "model.safetensors")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"backbone: {folder} holds no weights ({', '.join(names)}); name a run's folder or a file")
    return found[0]


def _any_size(image_model: ImageModel) -> tuple[int | None, Any]:
    """The model for images of any size, or the only side that it takes beside the model."""
    model = image_model.model
    if hasattr(model, "dynamic_img_size"):  # ViT, EVA, Swin: an argument of their builders
        arguments = image_model.model_args | {"dynamic_img_size": True, "num_classes": model.num_classes}
        if isinstance(
            model, SwinTransformer
        ):  # otherwise a stage of one window at the weights' resolution never shifts
            arguments["always_partition"] = True
        flexible = create(image_model.name, pretrained=False, model_args=arguments)
        load_weights(flexible, model.state_dict(), image_model.name)
        return None, flexible
    return (image_model.resolution if model.pretrained_cfg.get("fixed_input_size") else None), model


def _choose(feature_info: Any, name: str, spread: bool) -> tuple[list[int], list[int]]:
    """Index and stride of the model's own map for each of the four.

    Raises:
        UserError: If the model has neither all four strides nor a single one that can be scaled.
    """
    strides = [int(info["reduction"]) for info in feature_info]
    if set(STRIDES) <= set(strides):
        last = {stride: index for index, stride in enumerate(strides)}
        return [last[stride] for stride in STRIDES], list(STRIDES)
    count = len(strides)
    if set(strides) <= set(_SINGLE) and len(set(strides)) == 1:
        depths = [max(count * quarter // 4 - 1, 0) if spread else count - 1 for quarter in (1, 2, 3, 4)]
        return depths, [strides[0]] * 4
    patches = "; a ViT's patches can be resampled: {patch_size: 16}" if len(set(strides)) == 1 else ""
    raise UserError(
        f"backbone: the maps of {name} have strides {', '.join(map(str, sorted(set(strides))))}; needed are "
        f"4, 8, 16 and 32, or 8, 16 or 32 alone{patches}"
    )


def _scale(channels: int, stride: int, wanted: int) -> nn.Module:
    """From a map `[B, C, h, w]` of one stride to another: pooled, or doubled with half the channels each time."""
    if wanted >= stride:
        return nn.MaxPool2d(wanted // stride) if wanted > stride else nn.Identity()
    widths = [channels >> times for times in range(int(log2(stride // wanted)) + 1)]
    steps: list[nn.Module] = []
    for narrow, (before, after) in enumerate(pairwise(widths)):
        steps += [LayerNorm2d(before), nn.GELU()] if narrow else []
        steps.append(nn.ConvTranspose2d(before, after, 2, stride=2))
    return nn.Sequential(*steps)


def save_whole(
    path: Path, model: nn.Module, backbone: Backbone, *, head: str, resolution: int, classes: tuple[str, ...]
) -> str:
    """Write a model of another task, its backbone within, with a card that is enough to build it again.

    Args:
        path: The safetensors file.
        model: All of it.
        backbone: Its backbone.
        head: What stands on the backbone, such as `upernet`.
        resolution: Image side in pixels that it was trained at.
        classes: Class names.

    Returns:
        The SHA-256 of the file.
    """
    card = Card(
        architecture=f"{head}:{backbone.name}",
        num_classes=len(classes),
        resolution=resolution,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
        args=backbone.model_args,
        classes=classes,
    )
    return save_weights(path, model.state_dict(), card)


def card_of(path: Path, card: Card | None, head: str) -> Card:
    """The card of a file that `save_whole` has written.

    Raises:
        UserError: If it is another model's.
    """
    if card is None or not card.architecture.startswith(f"{head}:"):
        raise UserError(f"weights: {path} holds no {head} of scalekd's")
    return card
