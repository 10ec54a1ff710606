"""The paper's choices for a pair: student maps, number of attention heads, norm of the stem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import LayerNorm2d
from torch import nn

from scalekd.errors import UserError

_SWIN_HEADS = {"swin_small": (3, 6), "swin_base": (8, 16), "swin_large": (16, 24)}


def paper_heads(teacher_name: str) -> tuple[int, int]:
    """Return the attention heads of (CAP_prev, CAP_last): as released for Swin-S, B and L, otherwise 8."""
    return next((heads for prefix, heads in _SWIN_HEADS.items() if teacher_name.startswith(prefix)), (8, 8))


def map_indices(feature_info: Sequence[dict[str, Any]], name: str) -> tuple[list[int], str]:
    """Choose the indices of (S_prev, S_last) among a timm model's feature maps; also returns the reason as text.

    Hierarchical models use their last two stages; isotropic ones the map at 3/4 of their depth (block index 8 of 12,
    5 of 8) and the last.

    Raises:
        UserError: If the model has fewer than two maps.
    """
    depth = len(feature_info)
    if depth < 2:
        raise UserError(
            f"student: {name} has {depth} feature map(s), two are needed; specify two of its modules as student_maps"
        )
    if len({info["reduction"] for info in feature_info}) == 1:
        previous = min(round(0.75 * depth) - 1, depth - 2)
        return [previous, depth - 1], f"isotropic: maps {previous} (3/4 of the depth) and {depth - 1} (the last)"
    return [depth - 2, depth - 1], f"hierarchical: the last two of {depth} stages"


def check_indices(indices: Sequence[int], feature_info: Sequence[dict[str, Any]], name: str) -> None:
    """Check that the user's indices exist and are in ascending order.

    Raises:
        UserError: If an index does not exist (the message lists those that do), or the order is wrong.
    """
    for index in indices:
        if not 0 <= index < len(feature_info):
            raise UserError(
                f"student_maps: {name} has no map {index}; its maps are 0 to {len(feature_info) - 1}, "
                "or specify two of its modules by name"
            )
    if indices[0] >= indices[1]:
        raise UserError(f"student_maps: {indices[0]} does not come before {indices[1]}; specify the earlier map first")


def stem_norm(student: nn.Module) -> str:
    """Return `layernorm2d` if the student's own norm is a channel LayerNorm on maps (ConvNeXt), else `batchnorm`."""
    modules = list(student.modules())
    has_layernorm2d = any(isinstance(m, LayerNorm2d) for m in modules)
    return "layernorm2d" if has_layernorm2d and not any(isinstance(m, nn.BatchNorm2d) for m in modules) else "batchnorm"
