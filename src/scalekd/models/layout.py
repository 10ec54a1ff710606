"""How a pair's tensors and operations are laid out for speed on a device; it computes the same but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scalekd.method import Method
from scalekd.method.projector import StemConvolution
from scalekd.models.student import Student
from scalekd.models.teacher import Teacher


def prepare(method: Method, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> None:
    """Lay out a joined pair for `device` under autocast to `dtype`.

    Args:
        method: The pair.
        device: Where it will run.
        dtype: The autocast type.
        channels_last: Whether the student's convolutions use the channels-last layout.
    """
    if method.teacher is not None:
        prepare_teacher(method.teacher, device, dtype)
    choose_attention(method, device, dtype)
    choose_convolutions(method, device, dtype)
    if channels_last:
        assert isinstance(method.student, Student)
        method.student.model.to(memory_format=torch.channels_last)


def prepare_teacher(teacher: Teacher, device: torch.device, dtype: torch.dtype) -> None:
    """What `prepare` does to the teacher."""
    choose_attention(teacher, device, dtype)
    if dtype == torch.bfloat16:
        teacher.hold_weights(dtype)


def choose_attention(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Take attention's products and softmax apart where that is faster: in bf16 on the CPU (docs/decisions.md).

    Works on modules with timm's flag `fused_attn`, timm's own and ours.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False  # type: ignore[assignment]


def choose_convolutions(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Take the convolutions that oneDNN is slow at another way: in bf16 on the CPU (docs/decisions.md)."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return
    for part in module.modules():
        if isinstance(part, StemConvolution):
            part.as_product = torch.cpu._is_amx_tile_supported()
        elif type(part) is nn.Conv2d and part.groups == part.in_channels > 1:
            part.__class__ = WideDepthwise


class WideDepthwise(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast: its bf16 backward is 1.1 to 29 times as slow."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)
