"""The part of the images whose features are compared. Imports no torch, so that recipes can check it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class FeatureShare:
    """A part of the images of each epoch, chosen without random numbers.

    With a share of 1/4, every fourth image of the data set is chosen, and in the next view the image before each of
    them. A folder lists its images class by class, so all classes are represented equally.

    Attributes:
        share: The part, in [0, 1].
    """

    share: float

    @property
    def _exact(self) -> Fraction:
        return Fraction(self.share).limit_denominator(10_000)

    def count(self, images: int) -> int:
        """Return how many of `images` that are in memory at once are compared: the share, rounded down."""
        return int(self._exact * images)

    def chosen(self, image: Any, view: int) -> Any:
        """Whether the features of an image are compared in a view.

        Args:
            image: Index in the split: an integer, or a tensor or array of them.
            view: The epoch whose augmentation the image has.
        """
        part, whole = self._exact.as_integer_ratio()
        place = image + view
        return (place + 1) * part // whole > place * part // whole

    def chosen_before(self, image: int, view: int) -> int:
        """Return how many of the images with a lower index are compared in a view."""
        part, whole = self._exact.as_integer_ratio()
        return (image + view) * part // whole - view * part // whole
