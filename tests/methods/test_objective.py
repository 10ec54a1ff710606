from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scalekd import FeatureDistillation, LogitDistillation, ScaleKD, Student, Supervised, Teacher
from scalekd.methods.base import Method, logit_distance
from scalekd.methods.dist import RelationalDistillation
from scalekd.methods.ofa import LogitSpaceDistillation

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
PROXY = {"proxy_spatial", "proxy_frequency"}
STUDENT = {"student_spatial", "student_frequency"}

SWITCHES: list[tuple[dict[str, Any], set[str]]] = [
    ({"tpp": False, "alpha": {"spatial": 0.08}}, {"student_spatial"}),  # CAP alone
    ({"tpp": False}, STUDENT),  # + DFM
    ({}, PROXY | STUDENT),  # + TPP
    ({"alpha": {"spatial": 0.08}}, {"proxy_spatial", "student_spatial"}),
    ({"alpha": {"frequency": 0.06}}, {"proxy_frequency", "student_frequency"}),
    ({"query": "learned"}, PROXY | STUDENT),
    ({"stages": ("previous",)}, PROXY),
    ({"stages": ("last",)}, STUDENT),  # the proxies are queries only
    ({"stem": "conv1x1"}, PROXY | STUDENT),
    ({"stem": "none"}, PROXY | STUDENT),
    ({"stem_norm": "layernorm2d"}, PROXY | STUDENT),
]


def methods(teacher: Teacher, student: Student) -> list[Method]:
    scalekd = [ScaleKD(teacher, student, **settings) for settings, _ in SWITCHES]
    logits = [kind(teacher, student) for kind in (LogitDistillation, RelationalDistillation, LogitSpaceDistillation)]
    return [Supervised(student), *logits, FeatureDistillation(teacher, student), *scalekd]


@pytest.mark.parametrize(("settings", "terms"), SWITCHES)
def test_each_part_is_a_switch(teacher: Teacher, student: Student, settings: dict[str, Any], terms: set[str]) -> None:
    losses = ScaleKD(teacher, student, **settings)(IMAGES, LABELS)
    assert set(losses.terms) == {"task", "kd"} | terms
    assert set(losses.cosines) == terms
    torch.testing.assert_close(losses.total, sum(losses.terms.values()))


def test_baselines_have_their_terms_only(teacher: Teacher, student: Student) -> None:
    assert set(Supervised(student)(IMAGES, LABELS).terms) == {"task"}
    assert set(LogitDistillation(teacher, student)(IMAGES, LABELS).terms) == {"task", "kd"}
    assert set(FeatureDistillation(teacher, student)(IMAGES, LABELS).terms) == {"task", "feature"}


def test_every_parameter_gets_a_gradient_and_the_teacher_none(teacher: Teacher, student: Student) -> None:
    """Otherwise DDP would need a search for unused parameters."""
    for method in methods(teacher, student):
        method.zero_grad()
        method.train()(IMAGES, LABELS).total.backward()
        without = [name for name, parameter in method.named_parameters() if parameter.grad is None]
        assert not without, f"{type(method).__name__}: {without}"
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_no_part_of_the_method(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    ours = {parameter.data_ptr() for parameter in method.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in teacher.parameters())
    assert not any("teacher" in name for name in method.state_dict())
    method.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64, "the teacher follows .to()"


def test_gradients_pass_through_the_tail_into_the_student(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student, logit_weight=0)
    losses = method(IMAGES)
    losses.terms["proxy_spatial"].backward()
    assert method.tpp is not None
    assert all(p.grad is not None for p in method.tpp.previous.views["spatial"].parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_both_proxies_take_one_pass_of_the_tail_and_the_teacher_is_run_once(
    teacher: Teacher, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    tail, forward = teacher.tail, teacher.model.forward_features

    def counted_tail(tokens: Tensor) -> Tensor:
        calls.append("tail")
        return tail(tokens)

    def counted_forward(images: Tensor) -> Tensor:
        calls.append("teacher")
        result: Tensor = forward(images)
        return result

    monkeypatch.setattr(teacher, "tail", counted_tail)
    monkeypatch.setattr(teacher.model, "forward_features", counted_forward)
    ScaleKD(teacher, student)(IMAGES, LABELS)
    assert sorted(calls) == ["tail", "teacher"]


def test_the_logit_term_is_a_cross_entropy_of_softened_distributions() -> None:
    student, teacher, tau = torch.randn(5, 7), torch.randn(5, 7), 3.0
    expected = -(tau**2) * ((teacher / tau).softmax(1) * (student / tau).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(logit_distance(student, teacher, tau), expected)


def test_lambda_divides_task_and_logits(teacher: Teacher, student: Student) -> None:
    student.eval()
    losses = LogitDistillation(teacher, student, logit_weight=0.3)(IMAGES, LABELS)
    torch.testing.assert_close(losses.terms["task"], 0.7 * F.cross_entropy(losses.student_logits, LABELS))
    expected = 0.3 * logit_distance(losses.student_logits, teacher(IMAGES).logits, 1.0)
    torch.testing.assert_close(losses.terms["kd"], expected)


def test_without_labels_the_task_term_is_dropped(teacher: Teacher, student: Student) -> None:
    assert set(ScaleKD(teacher, student)(IMAGES).terms) == {"kd"} | PROXY | STUDENT
    with pytest.raises(ValueError, match="nothing to learn from"):
        Supervised(student)(IMAGES)


def test_without_logits_for_these_classes_lambda_is_zero(teacher: Teacher) -> None:
    other = Student("resnet18", num_classes=5, resolution=32)
    losses = ScaleKD(teacher, other)(IMAGES, LABELS)
    assert "kd" not in losses.terms
    torch.testing.assert_close(losses.terms["task"], F.cross_entropy(losses.student_logits, LABELS))


def test_unlabelled_images_add_nothing_to_the_task_term(teacher: Teacher, student: Student) -> None:
    student.eval()
    method = LogitDistillation(teacher, student)
    some = method(IMAGES, torch.tensor([0, -1, 2, -1]))
    torch.testing.assert_close(some.terms["task"], method(IMAGES[::2], LABELS[::2]).terms["task"] / 2)
    torch.testing.assert_close(some.terms["kd"], method(IMAGES).terms["kd"], msg="logits are of all images")
    none = method.train()(IMAGES, torch.full((4,), -1))
    assert none.terms["task"] == 0
    none.terms["task"].backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_labels_may_be_probabilities(teacher: Teacher, student: Student) -> None:
    student.eval()
    hard = ScaleKD(teacher, student)(IMAGES, LABELS).terms["task"]
    soft = ScaleKD(teacher, student)(IMAGES, F.one_hot(LABELS, 3).float()).terms["task"]
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"query": "proxy", "tpp": False}, "query"),
        ({"query": "random"}, "query"),
        ({"stages": ("first",)}, "stages"),
        ({"stages": ("previous", "last"), "tpp": False}, "stages"),
        ({"stages": ("last",), "query": "learned"}, "stages"),
        ({"stem": "conv5x5"}, "stem"),
        ({"stem_norm": "groupnorm"}, "stem_norm"),
        ({"alpha": {}}, "alpha"),
        ({"alpha": {"wavelet": 1.0}}, "wavelet"),
        ({"heads": (5, 8)}, "heads"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    teacher: Teacher, student: Student, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ScaleKD(teacher, student, **settings)


def test_the_plan_tells_shapes_heads_and_parameters(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student, heads=(4, 2))
    previous, last = method.plan.places
    assert (previous.student_map, previous.tokens) == (student.maps[0], teacher.tail_input)
    assert (last.student_map, last.tokens) == (student.maps[1], teacher.tokens)
    assert (previous.heads, last.heads) == (4, 2)
    assert (previous.query, last.query) == ("learned", "proxy")
    projectors = sum(p.numel() for p in method.parameters()) - sum(p.numel() for p in student.parameters())
    assert method.plan.parameters == projectors
    assert "CAP_prev" in str(method.plan)
