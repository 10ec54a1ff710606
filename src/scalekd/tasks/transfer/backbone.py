"""Turns any timm model into a backbone with four feature maps of strides 4, 8, 16 and 32."""

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
from scalekd.models.failure import naming_model
from scalekd.models.image_model import ImageModel
from scalekd.models.key_matching import load_weights
from scalekd.models.sources import create, is_timm
from scalekd.models.weights import Card, save_weights

STRIDES = (4, 8, 16, 32)
_SINGLE = (8, 16, 32)  # strides of single-stride models (ViT, Mixer) that a pyramid can be made from


class Backbone(nn.Module):
    """A classifier without its head as a trainable pyramid of feature maps.

    Hierarchical models return their own maps; if the model uses layer norms, each map goes through another layer norm,
    as in mmdetection and mmsegmentation. Swin always shifts its windows. A ViT or Mixer has one stride: its maps are
    scaled by deconvolutions and pooling, all from the last map (ViTDet's simple feature pyramid) or from four depths.
    Position embeddings are resampled to the image. An architecture with a fixed input size (Mixer, BEiT) processes the
    image as independent tiles of that size.

    Args:
        model: A timm name, a weights file written by scalekd, or the folder of a run or of `adapt`.
        weights: A safetensors file for a timm name.
        pretrained: Whether a timm name without `weights` gets the hub's weights; otherwise they are random.
        spread: Whether a single-stride model returns maps from four depths, a quarter of the blocks apart.
        model_args: Further arguments of `timm.create_model`, such as `drop_path_rate`.

    Attributes:
        name: The timm name.
        file: The weights file that was read, if any.
        channels: Channels of each map.
        strides: Stride of each map in pixels: 4, 8, 16, 32.

    Raises:
        UserError: If there is no such model, or its strides are not supported.
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
            raise UserError(f"backbone: {self.name} does not return feature maps like timm's models; use one of timm")
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
        """Build the backbone of a model saved by `save_whole`, with random weights."""
        backbone = cls(card.architecture.partition(":")[2], pretrained=False, spread=spread, **card.args)
        backbone.mean.copy_(torch.tensor(card.mean).view_as(backbone.mean))
        backbone.std.copy_(torch.tensor(card.std).view_as(backbone.std))
        return backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps `[B, C, H/4, W/4]` to `[B, C, H/32, W/32]`, finest first, of images `[B, 3, h, w]`.

        Images are RGB in [0, 1]. `H` and `W` are `h` and `w` rounded up to multiples of 32; images are padded at the
        right and bottom with the mean colour.

        Raises:
            ModelError: If the model's own code fails.
        """
        with naming_model("backbone", self.name, images.shape, "be trained on" if self.training else "run on"):
            images = (images - self.mean) / self.std
            height, width = images.shape[-2:]
            maps = self._read(F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])))
            return [scale(features) for scale, features in zip(self.scales, maps, strict=True)]

    def _read(self, images: Tensor) -> list[Tensor]:
        """Compute the model's own map for each of the four maps; in tiles if the model's input size is fixed."""
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
        """Compute the maps of one empty image and check that they have the strides that timm states.

        Raises:
            UserError: If the model fails, or a map has another stride.
        """
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
    """Find the weights file in the folder of a run, of `adapt` or of `export --format timm`.

    Raises:
        UserError: If there is none.
    """
    names = ("student.safetensors", "teacher.safetensors", "model.safetensors")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"backbone: {folder} holds no weights ({', '.join(names)}); pass a run's folder or a file")
    return found[0]


def _any_size(image_model: ImageModel) -> tuple[int | None, Any]:
    """Prepare the model for images of any size.

    Returns:
        None and the model; for a model with a fixed input size its side in pixels and the model.
    """
    model = image_model.model
    if hasattr(model, "dynamic_img_size"):  # ViT, EVA, Swin: an argument of their builders
        arguments = image_model.model_args | {"dynamic_img_size": True, "num_classes": model.num_classes}
        if isinstance(model, SwinTransformer):
            # Without it, a stage that has a single window at the weights' resolution never shifts its windows.
            arguments["always_partition"] = True
        flexible = create(image_model.name, pretrained=False, model_args=arguments)
        load_weights(flexible, model.state_dict(), image_model.name)
        return None, flexible
    return (image_model.resolution if model.pretrained_cfg.get("fixed_input_size") else None), model


def _choose(feature_info: Any, name: str, spread: bool) -> tuple[list[int], list[int]]:
    """Choose the model's own map for each of the four maps; return their indices and strides.

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
    """Build the module that scales a map `[B, C, h, w]` from one stride to another.

    Coarser maps are max-pooled. For finer maps, each deconvolution doubles the resolution and halves the channels.
    """
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
    """Save a detector or segmenter with a card from which it can be rebuilt.

    Args:
        path: The safetensors file to write.
        model: The whole model.
        backbone: Its backbone.
        head: Name of the model on the backbone, such as `upernet`.
        resolution: Image side in pixels in training.
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
    """Check that a card belongs to a file that `save_whole` wrote for this head, and return it.

    Raises:
        UserError: If it belongs to another model.
    """
    if card is None or not card.architecture.startswith(f"{head}:"):
        raise UserError(f"weights: {path} holds no {head} written by scalekd")
    return card
