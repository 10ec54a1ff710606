"""Builds torchvision's Faster R-CNN and Mask R-CNN on the feature maps of a backbone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from scalekd.errors import UserError
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.transfer.backbone import Backbone

_ANCHOR = 8  # side of an anchor, in cells of its map
_RATIOS = (0.5, 1.0, 2.0)


class Pyramid(nn.Module):
    """Feature pyramid network (FPN): maps of equal width, and an extra one of half the coarsest map's resolution.

    Args:
        backbone: Computes the maps.
        width: Channels of all maps.
        frozen_norm: Whether the backbone's batch norms keep their statistics; their scale and shift are still trained.
    """

    def __init__(self, backbone: Backbone, width: int, frozen_norm: bool) -> None:
        super().__init__()
        self.backbone, self.frozen_norm = backbone, frozen_norm
        self.fpn = FeaturePyramidNetwork(backbone.channels, width, LastLevelMaxPool())
        self.out_channels = width
        self.train()

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        for module in self.backbone.modules() if self.frozen_norm else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the maps `[B, C, h/s, w/s]` by name.

        Args:
            images: `[B, 3, h, w]`, RGB in [0, 1] minus the backbone's mean colour.
        """
        maps = self.backbone(images + self.backbone.mean)
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))
        return pyramid


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """Returns float32 under autocast: torchvision computes boxes in the dtype of the predicted shifts."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, shifts = super().forward(maps)
        return [o.float() for o in objectness], [s.float() for s in shifts]


class _BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Returns float32 under autocast; see `_ProposalHead`."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scores, shifts = super().forward(features)
        return scores.float(), shifts.float()


class _MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """Returns float32 under autocast, the dtype of the target masks."""

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = super().forward(features)
        return logits.float()


class _PartlyMaskedHeads(RoIHeads):  # type: ignore[misc]
    """Trains boxes on all objects, and masks on the objects that have one.

    `masked` `[N]` in the targets says which objects have a mask; if it is missing, all have one.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training or all("masked" not in t or bool(t["masked"].all()) for t in targets):
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
            found = super().forward(features, proposals, image_shapes, targets)
            return found
        proposals, matched, labels, shifts = self.select_training_samples(proposals, targets)
        boxed = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        classifier, box_reg = fastrcnn_loss(*self.box_predictor(boxed), labels, shifts)
        learned = [
            torch.where((label > 0) & target["masked"][match])[0] if len(target["masked"]) else label[:0]
            for label, match, target in zip(labels, matched, targets, strict=True)
        ]
        places = [proposal[index] for proposal, index in zip(proposals, learned, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, places, image_shapes)))
        mask = maskrcnn_loss(
            logits,
            places,
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [match[index] for match, index in zip(matched, learned, strict=True)],
        )
        return [], {"loss_classifier": classifier, "loss_box_reg": box_reg, "loss_mask": mask}


def build_detector(recipe: Detection, backbone: Backbone, num_classes: int, *, masks: bool = True) -> FasterRCNN:
    """Build Mask R-CNN with the settings of mmdetection's `mask-rcnn_r50_fpn`, as far as torchvision supports them.

    Without masks it is Faster R-CNN, which differs only in the missing mask head. All weights outside the backbone are
    random, drawn from torch's global generator.

    In training mode the detector maps images (RGB in [0, 1], each `[3, h, w]`) and targets to losses by name; in eval
    mode it maps images to boxes, scores, labels and masks. With masks, `masked` `[N]` in the targets says which objects
    have one.

    Args:
        recipe: The run's settings: the keys of `ModelKeys`, image sizes and proposals.
        backbone: Computes the feature maps.
        num_classes: Number of classes without the background, which is label 0.
        masks: Whether to train and predict masks; they must be wanted by the recipe and exist in the data.
    """
    width = recipe.width
    if recipe.frozen_stem:
        freeze_stem(backbone)
    names = [str(index) for index in range(len(backbone.strides))]
    strides = [*backbone.strides, 2 * backbone.strides[-1]]
    anchors = AnchorGenerator(tuple((_ANCHOR * stride,) for stride in strides), (_RATIOS,) * len(strides))
    options = {
        "backbone": Pyramid(backbone, width, recipe.frozen_norm),
        "min_size": recipe.sizes,  # evaluation uses the last one
        "max_size": recipe.max_size,
        "image_mean": backbone.mean.flatten().tolist(),  # so that padding with zeros has the mean colour
        "image_std": [1.0, 1.0, 1.0],
        "rpn_anchor_generator": anchors,
        "rpn_head": _ProposalHead(width, len(_RATIOS)),
        "rpn_post_nms_top_n_train": 1000,
        "box_roi_pool": MultiScaleRoIAlign(names, 7, sampling_ratio=0),
        "box_head": TwoMLPHead(width * 7 * 7, recipe.hidden),
        "box_batch_size_per_image": recipe.proposals,
        "box_predictor": _BoxPredictor(recipe.hidden, num_classes + 1),
    }
    if not masks:
        return FasterRCNN(**options)
    detector = MaskRCNN(
        **options,
        mask_roi_pool=MultiScaleRoIAlign(names, 14, sampling_ratio=0),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=_MaskPredictor(width, width, num_classes + 1),
    )
    detector.roi_heads.__class__ = _PartlyMaskedHeads  # torchvision does not accept another class
    return detector


def detector_name(detector: FasterRCNN) -> str:
    """Return a detector's name for messages: `Mask R-CNN on resnet18`."""
    kind = "Mask R-CNN" if isinstance(detector, MaskRCNN) else "Faster R-CNN"
    return f"{kind} on {detector.backbone.backbone.name}"


def freeze_stem(backbone: Backbone) -> None:
    """Freeze the weights of all layers up to the backbone's map of stride 4.

    Raises:
        UserError: If the model itself has no map of stride 4.
    """
    modules = {info["reduction"]: info["module"] for info in backbone.model.feature_info}
    last = modules.get(backbone.strides[0])
    if last is None:
        raise UserError(f"frozen_stem: {backbone.name} has no map of stride {backbone.strides[0]}; leave it out")
    seen = False
    for name, parameter in backbone.model.named_parameters():
        inside = name.startswith(f"{last}.")
        if seen and not inside:
            break
        seen = inside
        parameter.requires_grad_(False)
