"""TPP, teacher parameter perception (ScaleKD section 3.3): a proxy path through the teacher's own parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scalekd.methods.mimicking import DualViewMimicking


class TeacherParameterPerception(nn.Module):
    """`proxy_v = tail(CAP_prev_v(S_prev))` for each view `v`.

    Gradients pass through the frozen tail into the projectors and the student; the tail's parameters get none.

    Args:
        previous: CAP_prev of each view, with learned queries on the tail's input grid.
    """

    def __init__(self, previous: DualViewMimicking) -> None:
        super().__init__()
        self.previous = previous

    def forward(self, features: Tensor, tail: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Map S_prev `[B, C3, h3, w3]` to proxy tokens `[B, N, D]` of each view, all through one tail pass."""
        tokens = self.previous(features)
        proxies = tail(torch.cat(list(tokens.values())))
        return dict(zip(tokens, proxies.chunk(len(tokens)), strict=True))
