"""The baselines on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scalekd import Student, Teacher
from scalekd.methods.dist import RelationalDistillation, correlation
from scalekd.methods.kd import LogitDistillation
from scalekd.methods.ofa import LogitSpaceDistillation, enhanced_distance
from scalekd.methods.outputs import StudentOutputs

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def logits(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax is `rows`."""
    return torch.tensor(rows).log()


def outputs(values: Tensor) -> StudentOutputs:
    return StudentOutputs(previous=values, last=values, logits=values)


def test_dist_by_hand(teacher: Teacher, student: Student) -> None:
    """Two images, three classes, probabilities in tenths.

    Over classes, less each row's mean 1/3, in thirtieths: student (11, -4, -7), (-4, 5, -1); teacher (8, -1, -7),
    (-7, 2, 5). Correlations: 141 / sqrt(186 * 114) and 33 / sqrt(42 * 78). Over the two images, columns of two values
    correlate with 1 or -1: class 0 falls in both (1), class 1 rises in both (1), class 2 rises in both (1).
    """
    ours = logits((0.7, 0.2, 0.1), (0.2, 0.5, 0.3))
    theirs = logits((0.6, 0.3, 0.1), (0.1, 0.4, 0.5))
    inter = 1 - (141 / math.sqrt(186 * 114) + 33 / math.sqrt(42 * 78)) / 2
    terms = RelationalDistillation(teacher, student, beta=2.0, gamma=3.0).logit_terms(outputs(ours), theirs, None)
    assert terms["inter"].item() == pytest.approx(2 * inter, abs=1e-5)
    assert terms["intra"].item() == pytest.approx(0, abs=1e-5)
    turned = logits((0.1, 0.3, 0.6), (0.2, 0.4, 0.4))  # correlations -1, 1 and -1: their mean is -1/3
    terms = RelationalDistillation(teacher, student, gamma=3.0).logit_terms(outputs(ours), turned, None)
    assert terms["intra"].item() == pytest.approx(3 * 4 / 3, abs=1e-5)


def test_dists_temperature_softens_and_scales(teacher: Teacher, student: Student) -> None:
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    hot = RelationalDistillation(teacher, student, temperature=2.0).logit_terms(outputs(ours), theirs, None)
    expected = 4 * (1 - correlation((ours / 2).softmax(1), (theirs / 2).softmax(1), dim=1))
    torch.testing.assert_close(hot["inter"], expected)


def test_relations_do_not_see_scale_and_shift() -> None:
    """What DIST is for: any positive affine map of the teacher's row leaves its relation as it is."""
    table, other = torch.rand(5, 7), torch.rand(5, 7)
    torch.testing.assert_close(correlation(table, other, 1), correlation(table, 3 * other + 2, 1))
    torch.testing.assert_close(correlation(table, table, 0), torch.tensor(1.0))


def test_ofas_distance_by_hand() -> None:
    """Teacher (0.5, 0.3, 0.2), student (0.6, 0.3, 0.1), class 0, gamma 2: weights 1.5^2 - 1, 0.3^2, 0.2^2."""
    ours, theirs = logits((0.6, 0.3, 0.1)), logits((0.5, 0.3, 0.2))
    expected = -(1.25 * math.log(0.6) + 0.09 * math.log(0.3) + 0.04 * math.log(0.1))
    for labels in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
        assert enhanced_distance(ours, theirs, labels, 2.0, 1.0).item() == pytest.approx(expected, abs=1e-6)
    unlabelled = -(0.25 * math.log(0.6) + 0.09 * math.log(0.3) + 0.04 * math.log(0.1))
    for none in (None, torch.tensor([-1])):
        assert enhanced_distance(ours, theirs, none, 2.0, 1.0).item() == pytest.approx(unlabelled, abs=1e-6)


def test_ofa_without_enhancement_is_plain_distillation(teacher: Teacher, student: Student) -> None:
    student.eval()
    plain = LogitDistillation(teacher, student)(IMAGES, LABELS)
    terms = LogitSpaceDistillation(teacher, student, gamma=1.0)(IMAGES, LABELS).terms
    torch.testing.assert_close(terms["kd"], plain.terms["kd"])
    torch.testing.assert_close(terms["task"], plain.terms["task"])
    assert set(terms) == {"task", "kd", "exit_previous", "exit_last"}


@pytest.mark.parametrize("method", [LogitDistillation, RelationalDistillation, LogitSpaceDistillation])
def test_without_logits_for_these_classes_there_is_nothing_to_teach(
    teacher: Teacher, method: type[LogitDistillation]
) -> None:
    with pytest.raises(ValueError, match="3 classes, the student for 5"):
        method(teacher, Student("resnet18", num_classes=5, resolution=32))


@pytest.mark.parametrize("method", [LogitDistillation, RelationalDistillation, LogitSpaceDistillation])
def test_without_weight_on_the_logits_there_is_nothing_to_learn(
    teacher: Teacher, student: Student, method: type[LogitDistillation]
) -> None:
    with pytest.raises(ValueError, match="logit_weight"):
        method(teacher, student, logit_weight=0.0)


def test_a_head_that_begins_at_zero_gets_moderate_gradients_from_dist(teacher: Teacher, student: Student) -> None:
    """All classes are equally probable then: nothing varies that could be correlated."""
    ours = torch.zeros(8, 100, requires_grad=True)
    method = RelationalDistillation(teacher, student)
    terms = method.logit_terms(outputs(ours), torch.randn(8, 100), None)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert 0 < ours.grad.norm() < 1e3
