"""Choices for the device change speed, not values."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_CNN, TINY_VIT

from scalekd import ScaleKD, Student, Teacher
from scalekd.models.layout import choose_attention

CPU = torch.device("cpu")


def loss_and_gradient(method: ScaleKD) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method.zero_grad()
    total = method(images, torch.tensor([0, 1])).total
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@pytest.mark.parametrize("student_name", ["resnet18", "vit_tiny_patch16_224"])
def test_attention_taken_apart_computes_the_same(teacher: Teacher, student_name: str) -> None:
    extra = TINY_VIT if student_name.startswith("vit") else TINY_CNN
    method = (
        ScaleKD(teacher, Student(student_name, num_classes=3, resolution=32, **extra)).eval().double()
    )  # in float32, rounding is amplified
    fused = loss_and_gradient(method)
    flags = [part for model in (teacher, method) for part in model.modules() if getattr(part, "fused_attn", False)]
    assert flags
    choose_attention(method, CPU, torch.bfloat16)
    choose_attention(teacher, CPU, torch.bfloat16)
    assert not any(part.fused_attn for part in flags)
    for one, two in zip(fused, loss_and_gradient(method), strict=True):
        assert (one - two).norm() < 1e-4 * one.norm()


def test_attention_stays_fused_in_float32_and_on_gpus(teacher: Teacher) -> None:
    before = [getattr(part, "fused_attn", None) for part in teacher.modules()]
    choose_attention(teacher, CPU, torch.float32)
    choose_attention(teacher, torch.device("cuda"), torch.bfloat16)
    assert [getattr(part, "fused_attn", None) for part in teacher.modules()] == before
