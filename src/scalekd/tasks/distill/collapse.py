"""Notice in training that CAP's projectors have collapsed: all their tokens are equal to the teacher's mean token."""

from __future__ import annotations

from collections.abc import Mapping

COLLAPSED = 0.05  # docs/LOG.md: the frequency cosines of collapsed runs are at most 0.01
_FIRST_STEP, _LINES = 50, 5


class CollapseWatch:
    """Warns once per start if a frequency cosine stays near 0 after warm-up.

    The frequency view has no mean, so that collapsed tokens have no direction in it; the spatial cosine stays high.

    Args:
        warmup_steps: Steps of warm-up, in which projectors may learn slowly.
        scale: The learning rate of the projectors divided by the student's.
    """

    def __init__(self, warmup_steps: int, scale: float) -> None:
        self._first = max(warmup_steps, _FIRST_STEP)
        self._scale = scale
        self._low = 0  # logged steps in a row with a low cosine
        self._warned = False

    def look(self, cosines: Mapping[str, float], step: int) -> str | None:
        """Return a sentence if the projectors have collapsed, given the logged cosines of a step by name; else None."""
        frequency = {name: cosine for name, cosine in cosines.items() if name.endswith("_frequency")}
        if self._warned or not frequency or step < self._first:
            return None
        name, lowest = min(frequency.items(), key=lambda item: item[1])
        self._low = self._low + 1 if lowest < COLLAPSED else 0
        if self._low < _LINES:
            return None
        self._warned = True
        return (
            f"the projectors have collapsed: the cosine {name} is {lowest:.2f} at step {step}; start again with "
            f"--projector-lr-scale {self._scale / 4:.3g} (now {self._scale:.3g}) or a lower --lr"
        )
