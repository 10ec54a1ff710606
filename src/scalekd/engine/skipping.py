"""Skip optimiser steps whose gradients are NaN or infinite."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from scalekd.engine.sharding import whole

IN_A_ROW = 10  # number of consecutive skipped steps after which the run stops


class Skipper:
    """Removes a step's gradients if they are not finite; optimisers do not change parameters without gradients.

    Changes that the forward itself made, that is, batch norm's running statistics, are undone. Gradients are equal in
    all processes, and so is the decision to skip. Checking them makes the host wait for the device.

    Args:
        module: The module that is trained.

    Attributes:
        skipped: Number of steps skipped so far.
        in_a_row: Number of consecutive steps skipped up to now.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.skipped = self.in_a_row = 0
        self._buffers: list[Tensor] = []

    def begin(self) -> None:
        """Save the buffers that a forward may change; call before the first forward of a step."""
        self._buffers = [buffer.clone() for buffer in self._module.buffers()]

    def look(self) -> bool:
        """Check the gradients; if they are not finite, remove them, restore the buffers and return True."""
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
