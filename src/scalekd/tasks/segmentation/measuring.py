"""Measures a segmenter on a split and draws its predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import draw_segmentation_masks, save_image

from scalekd.data import CorruptImages, Key
from scalekd.hardware import Compute, to_device
from scalekd.tasks.segmentation.data import LabelledImages, SegmentationBatch, testing_transform
from scalekd.tasks.segmentation.files import Pairs
from scalekd.tasks.segmentation.model import Segmenter, predict
from scalekd.tasks.segmentation.schema import IGNORED, Segmentation
from scalekd.tasks.segmentation.values import Coding

_OPACITY = 0.7


@dataclass(frozen=True)
class IntersectionOverUnion:
    """Figures in percent, over all labelled pixels of a split.

    Attributes:
        miou: Mean intersection over union of the classes that occur in labels or predictions.
        pixel_accuracy: Share of pixels that are classified correctly.
        iou: Intersection over union of each class; None if it occurs neither in labels nor in predictions.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float | None, ...]

    @property
    def occurring(self) -> int:
        """Number of classes that the mean is over."""
        return sum(value is not None for value in self.iou)

    @property
    def extent(self) -> str:
        """Number of classes that the mean is over, as text: `3` or `2 of 3`."""
        return str(len(self.iou)) if self.occurring == len(self.iou) else f"{self.occurring} of {len(self.iou)}"


class Tally:
    """Counts a segmenter's pixels on a split by class and prediction, batch by batch.

    Args:
        recipe: The run's settings: the classes, window, stride and flip.
        device: Where the segmenter and the batches are.
    """

    def __init__(self, recipe: Segmentation, device: torch.device) -> None:
        self._recipe = recipe
        self._counts = MulticlassConfusionMatrix(len(recipe.class_names), ignore_index=IGNORED).to(device)

    def add(self, segmenter: Segmenter, batch: SegmentationBatch) -> None:
        """Run the segmenter on a batch on its device and count the pixels; the batch may be empty.

        Raises:
            UserError: If a label image is wrong.
        """
        batch.refuse_wrong()
        if batch.images.numel():
            predicted = classify(segmenter, batch.images, batch.labels.shape[-2:], self._recipe)
            self._counts.update(predicted, batch.labels.long())

    def figures(self) -> IntersectionOverUnion:
        """Compute the figures from the counts; all are zero if no pixel is labelled."""
        counts = self._counts.compute().double().cpu()
        hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        occurs = union > 0
        iou = 100 * hits / union.clamp(min=1)
        return IntersectionOverUnion(
            miou=float(iou[occurs].mean()) if occurs.any() else 0.0,
            pixel_accuracy=float(100 * hits.sum() / counts.sum().clamp(min=1)),
            iou=tuple(float(value) if found else None for value, found in zip(iou, occurs, strict=True)),
        )


def classify(model: Segmenter, images: Tensor, size: torch.Size, recipe: Segmentation) -> Tensor:
    """Predict the class of each pixel `[B, h', w']`, with the recipe's test settings.

    Args:
        model: The segmenter, in eval mode.
        images: `[B, 3, h, w]`, uint8.
        size: Height and width of the prediction.
        recipe: The run's settings: window, stride and flip.
    """
    pixels = images.float() / 255
    scores = predict(model, pixels, window=recipe.window, stride=recipe.window_stride, flip=recipe.flip_test)
    return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False).argmax(1)


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Iterable[SegmentationBatch],
    recipe: Segmentation,
    *,
    compute: Compute,
    corrupt: CorruptImages,
) -> IntersectionOverUnion:
    """Measure a segmenter on all batches.

    Args:
        model: The segmenter, in eval mode.
        batches: Batches from `testing_loader`.
        recipe: The run's settings.
        compute: The model's device, and the number format in which it runs.
        corrupt: Counter of unreadable files.

    Raises:
        UserError: If a label image is wrong, or too many files are unreadable.
    """
    tally = Tally(recipe, compute.device)
    for batch in batches:
        corrupt.add(batch.corrupt)
        with compute.autocast():
            tally.add(model, to_device(batch, compute.device))
    return tally.figures()


@torch.inference_mode()
def draw(model: Segmenter, pairs: Pairs, recipe: Segmentation, folder: Path, *, compute: Compute) -> None:
    """Write pictures of a split's first images, each with its labels and its prediction; the file name is the index.

    `recipe.pictures` is the number of images.
    """
    images, colours = LabelledImages(pairs, recipe, testing_transform(recipe)), palette(pairs, recipe)
    for number in range(min(recipe.pictures, len(pairs))):
        sample = images[Key(0, number)]
        if not sample.images.numel():
            continue
        with compute.autocast():
            predicted = classify(model, sample.images.to(compute.device), sample.labels.shape[-2:], recipe)
        folder.mkdir(parents=True, exist_ok=True)
        panels = _panels(sample.images[0], (sample.labels[0], predicted[0].cpu()), colours)
        save_image(panels, folder / f"{number:03}.png")


def _panels(image: Tensor, numbers: tuple[Tensor, ...], colours: list[tuple[int, int, int]]) -> Tensor:
    """Draw the image, followed by the image under each map of class indices `[h, w]`; RGB in [0, 1], `[3, h, n*w]`."""
    plain = F.interpolate(image[None].float(), tuple(numbers[0].shape), mode="bilinear", antialias=True)
    plain = plain[0].round().clamp(0, 255).byte()
    indices = torch.arange(len(colours))[:, None, None]
    over = partial(draw_segmentation_masks, plain, alpha=_OPACITY, colors=colours)
    return torch.cat([plain, *(over(masks=indices == those) for those in numbers)], dim=2).float() / 255


def palette(pairs: Pairs, recipe: Segmentation) -> list[tuple[int, int, int]]:
    """Return a colour for each class: from the label images if they have colours, otherwise Pascal VOC's.

    VOC assigns the bits of a number in turn to red, green and blue, lowest first. Its colour 0, black, is not used.
    """
    own = Coding(recipe).colours(pairs.labels[0])
    return own or [_voc(number) for number in range(1, len(recipe.class_names) + 1)]


def _voc(number: int) -> tuple[int, int, int]:
    channels = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return channels[0], channels[1], channels[2]
