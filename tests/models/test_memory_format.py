"""Layouts chosen for a device change speed, not results."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import TINY_CNN, TINY_VIT

from scalekd import ScaleKD, Student, Teacher
from scalekd.methods.projector import StemConvolution
from scalekd.models.memory_format import SparsePointwise, WideDepthwise, choose_attention, choose_convolutions

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


def test_a_pair_with_stems_as_products_computes_the_same(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    student = Student("mobilenetv1_100", num_classes=3, resolution=64)
    method = ScaleKD(teacher, student).eval()
    names = set(method.state_dict())
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        method.double().zero_grad()
        total = method(images.double(), labels).total
        total.backward()
        return total.detach(), torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])

    monkeypatch.setattr(WideDepthwise, "forward", torch.nn.Conv2d.forward)  # otherwise it would not stay in float64
    before = found()
    choose_convolutions(method, CPU, torch.bfloat16)
    changed = [part for part in method.modules() if isinstance(part, StemConvolution)]
    assert changed
    assert all(part.as_product for part in changed)
    for one, two in zip(before, found(), strict=True):
        assert (one - two).norm() < 1e-6 * one.norm()
    assert set(method.state_dict()) == names


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_stem_as_a_product_is_its_convolution(kernel: int) -> None:
    stem = StemConvolution(6, kernel).double()
    features = torch.rand(2, 6, 3, 4, dtype=torch.float64)
    convolved = stem(features)
    stem.as_product = True
    torch.testing.assert_close(stem(features), convolved)


def test_depthwise_convolutions_stay_in_float32_and_keep_the_type_around_them(teacher: Teacher) -> None:
    method = ScaleKD(teacher, Student("mobilenetv1_100", num_classes=3, resolution=64))
    choose_convolutions(method, CPU, torch.float32)
    choose_convolutions(method, torch.device("cuda"), torch.bfloat16)
    assert not any(isinstance(part, WideDepthwise) for part in method.modules())
    choose_convolutions(method, CPU, torch.bfloat16)
    depthwise = [part for part in method.modules() if isinstance(part, WideDepthwise)]
    assert len(depthwise) == 13
    assert not any(isinstance(part, WideDepthwise) for part in teacher.modules())
    part = depthwise[0]
    features = torch.rand(1, part.in_channels, 8, 8)

    def gradients(forward: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> list[torch.Tensor]:
        given = given.clone().requires_grad_()
        torch.autograd.backward(forward(given).sum())
        found = [given.grad, part.weight.grad]
        part.weight.grad = None
        return [gradient for gradient in found if gradient is not None]

    plain = gradients(lambda x: torch.nn.Conv2d.forward(part, x), features)
    with torch.autocast("cpu", torch.bfloat16):
        assert part(features.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(gradients(part, features), plain)
        rounded = gradients(part, features.bfloat16())
    assert [gradient.dtype for gradient in rounded] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(rounded[1], plain[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("settings", [{}, {"groups": 3}, {"bias": False, "dilation": 2}])
def test_a_pointwise_convolution_with_a_stride_picks_its_pixels_and_computes_the_same(settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(3, 6, 1, stride=(2, 3), **settings)  # type: ignore[arg-type]
    changed = torch.nn.Sequential(copy.deepcopy(plain))
    choose_convolutions(changed, CPU, torch.float32)
    assert isinstance(changed[0], SparsePointwise)
    images = torch.rand(2, 3, 7, 8)
    found, wanted = changed(images), plain(images)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for one, two in zip(changed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    with torch.no_grad():
        assert torch.equal(changed(images), plain(images))


def test_other_convolutions_stay() -> None:
    others = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2),
        torch.nn.Conv2d(3, 6, 1),
        torch.nn.Conv2d(64, 6, 1, stride=2),
        torch.nn.Conv2d(3, 6, 1, stride=2, padding=1),
    )
    choose_convolutions(others, CPU, torch.float32)
    choose_convolutions(
        fewer := torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1, stride=2)), torch.device("cuda"), torch.float32
    )
    assert {type(part) for part in (*others, *fewer)} == {torch.nn.Conv2d}
