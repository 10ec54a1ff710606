"""Object detection and instance segmentation: Mask R-CNN on a student's feature maps, on data in COCO's format."""

from scalekd.tasks.detection.schema import GROUPS, Detection

__all__ = ["GROUPS", "Detection"]
