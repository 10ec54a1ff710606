"""torchvision's Mask R-CNN over the feature maps of a student."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from scalekd.downstream.backbone import Backbone
from scalekd.errors import UserError

_ANCHOR = 8  # side of an anchor, in cells of its map
_RATIOS = (0.5, 1.0, 2.0)


class Pyramid(nn.Module):
    """Feature maps of equal width, and one more of half the coarsest one's sides.

    Args:
        backbone: Gives the maps.
        width: Channels of all maps.
        frozen_norm: Whether its batch norms keep the statistics that they have; scale and shift learn all the same.
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
        """RGB images in [0, 1] less the backbone's mean colour `[B, 3, h, w]` -> maps `[B, C, h/s, w/s]` by name."""
        maps = self.backbone(images + self.backbone.mean)
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))
        return pyramid


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """Gives float32 under autocast: torchvision computes boxes in the type of what it adds to the anchors."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, shifts = super().forward(maps)
        return [o.float() for o in objectness], [s.float() for s in shifts]


class _BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Gives float32 under autocast; see `_ProposalHead`."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scores, shifts = super().forward(features)
        return scores.float(), shifts.float()


class _MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """Gives float32 under autocast, as the masks that it is compared with are."""

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = super().forward(features)
        return logits.float()


def build_detector(
    backbone: Backbone,
    num_classes: int,
    *,
    sizes: Sequence[int],
    max_size: int,
    frozen_norm: bool,
    frozen_stem: bool,
    proposals: int,
    width: int = 256,
    hidden: int = 1024,
) -> MaskRCNN:
    """Mask R-CNN with the settings of mmdetection's `mask-rcnn_r50_fpn`, as far as torchvision has them.

    In training it maps images (RGB in [0, 1], each `[3, h, w]`) and targets to losses by name, otherwise images to
    boxes, scores, labels and masks.

    Args:
        backbone: The student's maps.
        num_classes: Classes without the background, which becomes label 0.
        sizes: Short sides in pixels that images are resized to; training draws one for each image, evaluation takes
            the last.
        max_size: Longest side in pixels.
        frozen_norm: Whether the backbone's batch norms keep their statistics.
        frozen_stem: Whether its layers up to the first map keep their weights.
        proposals: Boxes of each image that the heads learn from.
        width: Channels of the pyramid and of the mask head.
        hidden: Width of the box head.
    """
    if frozen_stem:
        freeze_stem(backbone)
    names = [str(index) for index in range(len(backbone.strides))]
    strides = [*backbone.strides, 2 * backbone.strides[-1]]
    anchors = AnchorGenerator(tuple((_ANCHOR * stride,) for stride in strides), (_RATIOS,) * len(strides))
    return MaskRCNN(
        Pyramid(backbone, width, frozen_norm),
        min_size=tuple(sizes),
        max_size=max_size,
        image_mean=backbone.mean.flatten().tolist(),  # what is padded with zeros has the mean colour
        image_std=[1.0, 1.0, 1.0],
        rpn_anchor_generator=anchors,
        rpn_head=_ProposalHead(width, len(_RATIOS)),
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=MultiScaleRoIAlign(names, 7, sampling_ratio=0),
        box_head=TwoMLPHead(width * 7 * 7, hidden),
        box_batch_size_per_image=proposals,
        box_predictor=_BoxPredictor(hidden, num_classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(names, 14, sampling_ratio=0),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=_MaskPredictor(width, width, num_classes + 1),
    )


def freeze_stem(backbone: Backbone) -> None:
    """Keep the weights of all layers up to the backbone's map of stride 4.

    Raises:
        UserError: If it has none of its own.
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
