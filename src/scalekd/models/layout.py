"""How a pair's tensors and operations are laid out for speed on a device; it computes the same but for rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.method import Method
from scalekd.method.projector import StemConvolution
from scalekd.models.build import ImageModel
from scalekd.models.student import Student
from scalekd.models.teacher import Teacher

_VECTOR = 16  # float32 numbers in the widest register that oneDNN uses


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
    assert isinstance(method.student, Student)
    prepare_classifier(method.student, device, dtype, channels_last=channels_last)


def prepare_classifier(model: ImageModel, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> None:
    """What `prepare` does to the student: whoever measures its weights rounds as training does; see `prepare`."""
    choose_attention(model, device, dtype)
    choose_convolutions(model, device, dtype)
    if channels_last:
        model.model.to(memory_format=torch.channels_last)


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
    """Take the convolutions that oneDNN is slow at, or fails at, another way on the CPU (docs/decisions.md)."""
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
    """Whether a convolution reads single pixels, not all of them, of few channels."""
    few = part.in_channels // part.groups < _VECTOR
    return few and part.kernel_size == (1, 1) and part.stride != (1, 1) and part.padding == (0, 0)


class SparsePointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, which picks its pixels itself in training.

    The weight gradient of oneDNN 3.x writes beyond its memory where they are channels-last and the channels fewer than
    a vector holds, which ends the process: the first layer of RepVGG, MobileOne and FastViT.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias, groups=self.groups)


class WideDepthwise(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast: its bf16 backward is 1.1 to 29 times as slow."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)
