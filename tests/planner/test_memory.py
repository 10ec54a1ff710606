"""Predicted memory agrees with sums by hand and a real step's tensors; the largest batch that fits is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scalekd import FeatureDistillation, LogitDistillation, ScaleKD, Student, Supervised, Teacher
from scalekd.errors import UserError
from scalekd.methods.base import Method
from scalekd.planner import StepMemory, UnpredictableError, available_memory, largest_batch, measure, step_memory
from scalekd.planner.memory import track

CPU = torch.device("cpu")


def predict(method: Method, batch: int = 4, dtype: torch.dtype = torch.float32, ema: bool = False) -> StepMemory:
    return step_memory(method, batch=batch, optimizer="adamw", ema=ema, dtype=dtype)


def size(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def test_parts_by_hand(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    trained = sum(4 * p.numel() for p in method.parameters())
    memory = predict(method)
    assert memory.weights == size(method) + size(teacher)
    assert memory.gradients == trained
    assert memory.optimizer == 2 * trained
    assert predict(method, ema=True).weights == memory.weights + size(student)
    assert step_memory(method, batch=4, optimizer="sgd", ema=False, dtype=torch.float32).optimizer == trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_without_memory_live_as_real_ones_do(teacher: Teacher, student: Student, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        teacher.hold_weights(dtype)
    method = ScaleKD(teacher, student)
    memory = predict(method, 64, dtype)
    real = track(method, 64, dtype, accumulate=False, device="cpu")
    assert memory.weights + memory.gradients + memory.activations == pytest.approx(real.peak, rel=0.01)


def test_activations_grow_with_the_batch(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    small, middle, large = (predict(method, batch).activations for batch in (128, 256, 384))
    assert large - middle == pytest.approx(middle - small, rel=0.02)
    images = 4 * 3 * 32 * 32
    assert middle - small > 128 * images


def test_summed_gradients_live_through_the_backward(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    whole = predict(method, 8)
    summed = step_memory(method, batch=8, optimizer="adamw", ema=False, dtype=torch.float32, accumulate=True)
    assert whole.total < summed.total <= whole.total + 2 * whole.gradients


def test_every_method(teacher: Teacher, student: Student) -> None:
    methods = (ScaleKD, FeatureDistillation, LogitDistillation)
    totals = [predict(method(teacher, student)).total for method in methods]
    totals.append(predict(Supervised(student)).total)
    assert totals == sorted(totals, reverse=True)


def test_the_prediction_takes_nothing_and_changes_nothing(student: Student) -> None:
    with torch.device("meta"):
        giant = ScaleKD(
            Teacher("vit_giant_patch14_224", pretrained=False, depth=4, num_classes=10), Student("resnet18")
        )
    assert predict(giant, 4096).total > 2**36
    assert all(p.grad is None for p in giant.parameters())


def test_largest_batch(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)

    def largest(budget: int) -> tuple[int, StepMemory]:
        return largest_batch(method, budget_bytes=budget, batch=8, optimizer="adamw", ema=True, dtype=torch.float32)

    def needs(batch: int) -> StepMemory:
        return step_memory(method, batch=batch, optimizer="adamw", ema=True, dtype=torch.float32, accumulate=batch < 8)

    four = needs(4)
    assert largest(2**40) == (8, needs(8))
    assert largest(four.total) == (4, four)
    assert largest(four.total - 1) == (2, needs(2))
    with pytest.raises(UserError, match=r"^memory: 2 images at once need \d+ MiB, but 1 MiB are available; ") as raised:
        largest(2**20)
    assert "\n" not in str(raised.value)


def test_available_memory() -> None:
    assert 2**20 < available_memory(CPU) < 2**50


def test_measure(teacher: Teacher, student: Student) -> None:
    measured = measure(
        ScaleKD(teacher, student),
        batch=4,
        optimizer_factory=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        dtype=torch.float32,
        steps=2,
    )
    assert len(measured.step_seconds) == 2
    assert measured.images_per_second > 0
    assert 0 < measured.peak_bytes < 2**30


def test_a_batch_without_small_parts_is_told_apart_from_too_little_memory(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    settings: dict[str, Any] = {"optimizer": "adamw", "ema": False, "dtype": torch.float32}
    budget = step_memory(method, batch=100, **settings).total
    with pytest.raises(UserError, match="1009 has no smaller divisor, use one with small divisors"):
        largest_batch(method, budget_bytes=budget, batch=1009, **settings)
    odd, _ = largest_batch(method, budget_bytes=budget, batch=990, **settings)
    assert odd == 99
    even, _ = largest_batch(method, budget_bytes=budget, batch=990, even=True, **settings)
    assert even == 90


def test_another_device_has_no_overhead_of_the_cpus(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student)
    settings: dict[str, Any] = {"batch": 8, "optimizer": "adamw", "ema": False, "dtype": torch.float32}
    assert step_memory(method, device="cuda", **settings).overhead == 0
    assert step_memory(method, device="cpu", **settings).overhead > 0


def test_own_code_is_not_run_without_memory(teacher: Teacher, student: Student) -> None:
    student.name = "python:own.model"
    with pytest.raises(UnpredictableError, match="pass --micro-batch"):
        step_memory(ScaleKD(teacher, student), batch=2, optimizer="adamw", ema=False, dtype=torch.float32)
