"""Semantic segmentation: UPerNet on a student's feature maps."""

from scalekd.tasks.segmentation.schema import GROUPS, Segmentation

__all__ = ["GROUPS", "Segmentation"]
