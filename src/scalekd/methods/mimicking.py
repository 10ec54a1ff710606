"""DFM, dual-view feature mimicking (ScaleKD section 3.2): the same distance on two views of the tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.methods.projector import CrossAttentionProjector


def remove_zero_frequency(tokens: Tensor) -> Tensor:
    """Set each channel's zero-frequency coefficient over the grid to 0.

    Setting the (0, 0) coefficient of a 2-D DCT to 0 and transforming back is exactly the same as subtracting the mean
    over positions, so no transform is needed.

    Args:
        tokens: `[B, N, D]`, with the `N` positions of any grid.

    Returns:
        `[B, N, D]`.
    """
    return tokens - tokens.mean(dim=1, keepdim=True)


def view_distance(tokens: Tensor, target: Tensor, view: str) -> tuple[Tensor, Tensor]:
    """Return the distance of one view, `1/B sum_b sum_p || f^ - T^ ||^2`; `^` is L2 normalisation over channels.

    It is computed in float32 for inputs of any type.

    Args:
        tokens: `[B, N, D]`.
        target: Teacher tokens `[B, N, D]`.
        view: `spatial` or `frequency`.

    Returns:
        The scalar distance (between 0 and `4 N`), and the mean cosine over batch and positions (detached).
    """
    tokens, target = tokens.float(), target.float()
    if view == "frequency":
        tokens, target = remove_zero_frequency(tokens), remove_zero_frequency(target)
    tokens, target = F.normalize(tokens, dim=-1), F.normalize(target, dim=-1)
    distance = (tokens - target).square().sum() / len(tokens)
    cosine = (tokens * target).detach().sum(-1).mean()
    return distance, cosine


class DualViewMimicking(nn.Module):
    """The projectors of one place in the student: one per view, each with its own weights.

    Args:
        projectors: A projector for each view, which returns tokens.
        alpha: Weight of the distance of each view.
    """

    def __init__(self, projectors: Mapping[str, nn.Module], alpha: Mapping[str, float]) -> None:
        super().__init__()
        self.views = nn.ModuleDict(projectors)
        self.alpha = dict(alpha)

    @property
    def projectors(self) -> dict[str, CrossAttentionProjector]:
        """The CAP of each view; empty if the projectors are linear."""
        return {view: cap for view, cap in self.views.items() if isinstance(cap, CrossAttentionProjector)}

    def forward(self, features: Tensor, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Project `features` `[B, C, h, w]` to tokens `[B, Nq, Dq]` of each view."""
        if queries is None:
            return {view: projector(features) for view, projector in self.views.items()}
        return {view: projector(features, queries[view]) for view, projector in self.views.items()}

    def losses(
        self, tokens: Mapping[str, Tensor], target: Tensor, place: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted distances and the cosines of all views, named `<place>_<view>`."""
        terms, cosines = {}, {}
        for view, weight in self.alpha.items():
            distance, cosines[f"{place}_{view}"] = view_distance(tokens[view], target, view)
            terms[f"{place}_{view}"] = weight * distance
        return terms, cosines
