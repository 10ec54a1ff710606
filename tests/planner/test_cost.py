"""Parameters, multiply-accumulates and FLOPs against published figures and torch's counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalekd import FeatureDistillation, LogitDistillation, ScaleKD, Student, Supervised, Teacher
from scalekd.methods.base import Method
from scalekd.models.image_model import ImageModel
from scalekd.planner import StepFlops, model_cost, step_flops

PAGE = Path(__file__).parents[2] / "docs" / "planner.md"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MobileNet-V1": ("mobilenetv1_100", {}),
    "ResNet-50": ("resnet50", {}),
    "ConvNeXt-T": ("convnext_tiny", {}),
    "Mixer-S/16": ("mixer_s16_224", {}),
    "Mixer-B/16": ("mixer_b16_224", {}),
    "ViT-S/16": ("vit_small_patch16_224", {}),
    "Swin-T": ("swin_tiny_patch4_window7_224", {}),
    "ViT-B/16": ("vit_base_patch16_224", {}),
    "Mixer-B/14": ("mixer_b14_224", {}),
    "ViT-B/14": ("vit_base_patch16_224", {"patch_size": 14}),
    "Swin-S": ("swin_small_patch4_window7_224", {}),
    "Swin-B": ("swin_base_patch4_window7_224", {}),
    "Swin-L": ("swin_large_patch4_window7_224", {}),
    "BEiT-L/14 (EVA) at 224 px": ("eva_large_patch14_196", {"img_size": 224}),
    "BEiT-L/14 (EVA) at 196 px, as it teaches": ("eva_large_patch14_196", {}),
}
# For the /14 students and EVA at 224 px, the paper prints the parameters of the /16 models and of EVA at 196 px.
OTHER_PARAMETERS = {"Mixer-B/14", "ViT-B/14", "BEiT-L/14 (EVA) at 224 px"}


def rows() -> dict[str, list[str]]:
    """Read the documentation's table of parameters and MACs: rows by model, without bold marks."""
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0] in MODELS}


def test_the_documentation_lists_every_model_of_the_paper() -> None:
    assert set(rows()) == set(MODELS)


@pytest.mark.parametrize("title", MODELS)
def test_published_figures_come_out_and_the_documentation_is_true(title: str) -> None:
    name, arguments = MODELS[title]
    with torch.device("meta"):
        cost = model_cost(ImageModel(name, pretrained=False, num_classes=1000, **arguments))
    published, parameters, macs, without = rows()[title]
    assert f"{cost.parameters / 1e6:.2f}" == parameters
    assert f"{cost.macs / 1e9:.3f}" == macs
    assert without == (f"{cost.macs_without_attention / 1e9:.3f}" if cost.macs != cost.macs_without_attention else "")
    if published:
        paper_parameters, paper_macs = published.split(" / ")
        if title not in OTHER_PARAMETERS:
            assert parameters == paper_parameters
        counted = cost.macs_without_attention if title.startswith("Swin") else cost.macs
        assert counted / 1e9 == pytest.approx(float(paper_macs), rel=0.01)


def test_attention_of_a_plain_vit_is_its_two_products() -> None:
    with torch.device("meta"):
        cost = model_cost(ImageModel("vit_tiny_patch16_224", pretrained=False))
    assert cost.macs - cost.macs_without_attention == 12 * 2 * 197 * 197 * 192  # depth, products, tokens, width


def test_a_model_that_reads_values_is_counted_on_a_real_copy() -> None:
    class Reader(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.weight.sum().item() != 0
            return super().forward(x)

    model = ImageModel(Reader(32, 4, bias=False), resolution=32)
    assert model_cost(model).macs == 3 * 32 * 32 * 4
    assert model.model.training


def counted(method: Method, batch: int = 2) -> float:
    """Count the FLOPs per image of a real step."""
    side = method.student.resolution  # type: ignore[attr-defined]
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        losses = method.train()(torch.rand(batch, 3, side, side), torch.zeros(batch, dtype=torch.long))
        losses.total.backward()
    return counter.get_total_flops() / batch


@pytest.mark.parametrize(
    ("teacher_name", "student_name"),
    [
        ("swin_tiny_patch4_window7_224", "resnet18"),
        ("vit_tiny_patch16_224", "mobilenetv1_100"),
        ("vit_tiny_patch16_224", "mixer_s32_224"),
    ],
)
def test_step_flops_are_those_of_a_real_step(teacher_name: str, student_name: str) -> None:
    teacher = Teacher(teacher_name, pretrained=False, resolution=112)  # a quarter of the work, but all operations
    student = Student(student_name, resolution=112)
    method = ScaleKD(teacher, student)
    flops = step_flops(method)
    assert flops.torch_counter == pytest.approx(counted(method), rel=0.02)
    if student_name != "mobilenetv1_100":
        assert flops.total == flops.torch_counter
    forward = 2 * model_cost(teacher).macs
    assert flops.teacher == pytest.approx(forward, rel=0.01)
    assert flops.tail > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_a_depthwise_students_backward_is_twice_its_forward() -> None:
    """torch's counter cannot be the reference: it counts the weight gradient of grouped convolutions as dense."""
    student = Student("mobilenetv1_100", resolution=64)
    flops = step_flops(Supervised(student))
    first = 2 * 32 * 32 * 32 * 27  # images get no gradient: the first convolution's backward is one product, not two
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        student(torch.rand(1, 3, 64, 64))
    assert flops.total == flops.student == 3 * counter.get_total_flops() - first
    assert flops.torch_counter > 2 * flops.total


def test_step_flops_of_every_method(teacher: Teacher, student: Student) -> None:
    parts: dict[type[Method], StepFlops] = {}
    methods = [ScaleKD(teacher, student), FeatureDistillation(teacher, student), LogitDistillation(teacher, student)]
    for method in (*methods, Supervised(student)):
        flops = parts[type(method)] = step_flops(method)
        assert flops.total == pytest.approx(counted(method))
        student.zero_grad()
    assert len({flops.student for flops in parts.values()}) == 1
    assert [kind.__name__ for kind, flops in parts.items() if flops.tail] == ["ScaleKD"]
    assert [kind.__name__ for kind, flops in parts.items() if flops.cap] == ["ScaleKD", "FeatureDistillation"]
    assert [kind.__name__ for kind, flops in parts.items() if not flops.teacher] == ["Supervised"]


def test_counting_leaves_the_method_as_it_is(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher.hold_weights(torch.bfloat16), student).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step_flops(method)
    assert not method.training
    assert "tail" not in vars(teacher)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
