"""Leaving out steps whose gradients are NaN or infinite."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from scalekd.engine.sharding import whole

IN_A_ROW = 10  # steps that are left out before the run stops all the same


class Skipper:
    """Takes a step's gradients away where they are not finite; optimisers leave parameters without one as they are.

    What the forward has changed by itself, batch norm's running statistics, is put back. Gradients are equal on all
    processes, and so is what is decided on them. Looking at them makes the host wait for the device.

    Args:
        module: What is trained.

    Attributes:
        skipped: Steps that were left out so far.
        in_a_row: How many of them were the last ones.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.skipped = self.in_a_row = 0
        self._buffers: list[Tensor] = []

    def begin(self) -> None:
        """Note what a forward may change; before the first one of a step."""
        self._buffers = [buffer.clone() for buffer in self._module.buffers()]

    def look(self) -> bool:
        """Whether the step is to be left out; its gradients are gone then."""
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        if torch.isfinite(whole(get_total_norm(gradients))):
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        self._module.zero_grad(set_to_none=True)
        for buffer, before in zip(self._module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        return True
