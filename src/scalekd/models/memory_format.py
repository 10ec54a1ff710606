"""Choose a pair's memory layouts and operations for speed on a device; results are equal up to rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.methods.base import Method
from scalekd.methods.projector import StemConvolution
from scalekd.models.image_model import ImageModel
from scalekd.models.student import Student
from scalekd.models.teacher import Teacher

_VECTOR = 16  # float32 values in the widest vector register that oneDNN uses


def prepare(method: Method, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> None:
    """Prepare a pair for `device` under autocast to `dtype`.

    Args:
        method: The pair of teacher and student.
        device: The device that it will run on.
        dtype: The autocast type.
        channels_last: Whether the student's convolutions use the channels-last layout.
    """
    if method.teacher is not None:
        prepare_teacher(method.teacher, device, dtype)
    choose_attention(method, device, dtype)
    choose_convolutions(method, device, dtype)
    assert isinstance(method.student, Student)
    prepare_classifier(method.student, device, dtype, channels_last=channels_last)


def prepare_classifier(model: ImageModel, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> None:
    """Prepare a student as `prepare` does, so that measuring its weights rounds as in training."""
    choose_attention(model, device, dtype)
    choose_convolutions(model, device, dtype)
    if channels_last:
        model.model.to(memory_format=torch.channels_last)


def prepare_teacher(teacher: Teacher, device: torch.device, dtype: torch.dtype) -> None:
    """Prepare a teacher as `prepare` does."""
    choose_attention(teacher, device, dtype)
    if dtype == torch.bfloat16:
        teacher.hold_weights(dtype)


def choose_attention(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Disable fused attention where separate products and softmax are faster: bf16 on the CPU (docs/decisions.md).

    Applies to all modules with timm's flag `fused_attn`, both timm's and scalekd's.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False  # type: ignore[assignment]


def choose_convolutions(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Replace convolutions on the CPU for which oneDNN is slow or fails (docs/decisions.md)."""
    if device.type != "cpu":
        return
    for part in module.modules():
        if type(part) is nn.Conv2d and _skips_pixels(part):
            part.__class__ = SparsePointwise
        elif dtype != torch.bfloat16:
            continue
        elif isinstance(part, StemConvolution):
            part.as_product = torch.cpu._is_amx_tile_supported()
        elif type(part) is nn.Conv2d and part.groups == part.in_channels > 1:
            part.__class__ = WideDepthwise


def _skips_pixels(part: nn.Conv2d) -> bool:
    """Whether a convolution is 1x1 with a stride, without padding, and has few input channels."""
    few = part.in_channels // part.groups < _VECTOR
    return few and part.kernel_size == (1, 1) and part.stride != (1, 1) and part.padding == (0, 0)


class SparsePointwise(nn.Conv2d):
    """A 1x1 convolution with a stride that selects its input pixels by indexing in training.

    oneDNN 3.x's weight gradient writes out of bounds, which crashes the process, if the input is channels-last and has
    fewer channels than a vector register holds: the first layer of RepVGG, MobileOne and FastViT.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias, groups=self.groups)


class WideDepthwise(nn.Conv2d):
    """A depthwise convolution that runs in float32 under autocast: its bf16 backward takes 1.1 to 29 times as long."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)
