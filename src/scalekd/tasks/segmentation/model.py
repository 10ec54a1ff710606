"""UPerNet on a backbone's feature maps, and prediction with it: whole image, sliding window, flip."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.errors import UserError
from scalekd.tasks.transfer.backbone import Backbone

try:
    from segmentation_models_pytorch.base import initialization
    from segmentation_models_pytorch.base.modules import Conv2dReLU
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
except ImportError as missing:
    raise UserError("segmentation: needs segmentation-models-pytorch: pip install '.[downstream]'") from missing

_AUXILIARY_CHANNELS = 256
_AUXILIARY_MAP = 2  # of stride 16


class Scores(NamedTuple):
    """Class scores `[B, K, h, w]` of the decoder, and of the auxiliary head in training mode."""

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """UPerNet: segmentation-models-pytorch's decoder on four maps, with an auxiliary head for training.

    Args:
        backbone: Computes the maps.
        num_classes: Number of classes, `K`.
        decoder_channels: Channels of the decoder.
        dropout: Fraction of channels dropped before the class scores.
        auxiliary: Whether to add an auxiliary head on the map of stride 16.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        decoder_channels: int = 512,
        dropout: float = 0.1,
        auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # The decoder expects six maps and ignores the first two: the image and a map of stride 2.
        self.decoder = UPerNetDecoder([0, 0, *backbone.channels], decoder_channels=decoder_channels)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(decoder_channels, num_classes, 1))
        self.auxiliary = None
        if auxiliary:
            self.auxiliary = nn.Sequential(
                Conv2dReLU(backbone.channels[_AUXILIARY_MAP], _AUXILIARY_CHANNELS, 3, padding=1),
                nn.Dropout2d(dropout),
                nn.Conv2d(_AUXILIARY_CHANNELS, num_classes, 1),
            )
        for part in (self.decoder, self.head, self.auxiliary):
            if part is not None:
                initialization.initialize_decoder(part)

    @property
    def name(self) -> str:
        """Name for messages: `UPerNet on resnet18`."""
        return f"UPerNet on {self.backbone.name}"

    def forward(self, images: Tensor) -> Scores:
        """Compute class scores of each pixel for RGB images in [0, 1] `[B, 3, h, w]` of any size."""
        maps = self.backbone(images)
        size = images.shape[-2:]
        auxiliary = None
        if self.auxiliary is not None and self.training:
            auxiliary = _enlarge(self.auxiliary(maps[_AUXILIARY_MAP]), 16, size)
        return Scores(_enlarge(self.head(self.decoder([None, None, *maps])), 4, size), auxiliary)


def _enlarge(scores: Tensor, stride: int, size: torch.Size) -> Tensor:
    """Upsample the scores of a map to pixels, and cut off the backbone's padding at the right and bottom."""
    whole = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    return whole[..., : size[0], : size[1]]


def predict(
    model: Callable[[Tensor], Scores],
    images: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    flip: bool = False,
) -> Tensor:
    """Predict the class probabilities of each pixel, `[B, K, h, w]`, float32.

    Args:
        model: A `Segmenter` in eval mode.
        images: RGB in [0, 1], `[B, 3, h, w]`.
        window: Side of a sliding window in pixels; None for the whole image at once.
        stride: Pixels between windows. Default: two thirds of the window.
        flip: Whether to average with the prediction for the mirrored image.
    """
    if window is None:
        scores = model(images).logits.float()
    else:
        scores = _slide(model, images, window, stride or -(-window * 2 // 3))
    probabilities = scores.softmax(1)
    if not flip:
        return probabilities
    mirrored = predict(model, images.flip(-1), window=window, stride=stride)
    return (probabilities + mirrored.flip(-1)) / 2


def _slide(model: Callable[[Tensor], Scores], images: Tensor, window: int, stride: int) -> Tensor:
    """Average the scores of all windows that cover a pixel; the last window of a row or column ends at the edge."""
    height, width = images.shape[-2:]
    total, seen = torch.zeros(()), images.new_zeros(height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            rows, columns = slice(top, top + window), slice(left, left + window)
            scores = model(images[..., rows, columns]).logits.float()
            if not total.ndim:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[..., rows, columns] += scores
            seen[rows, columns] += 1
    return total / seen


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return sorted({*range(0, last, stride), last})
