"""Semantic segmentation: UPerNet on a student's features."""

from scalekd.tasks.segmentation.schema import GROUPS, Segmentation

__all__ = ["GROUPS", "Segmentation"]
