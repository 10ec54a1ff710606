"""A step's machine-independent costs have not grown; see benchmarks/guard.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "guard.py"


def load_guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guard", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


guard = load_guard()


@pytest.mark.parametrize(("teacher", "student"), guard.PAIRS)
def test_a_step_costs_no_more_than_before(teacher: str, student: str) -> None:
    recorded = guard.recorded()[f"{teacher} -> {student}"]
    now = guard.quantities(teacher, student)
    assert set(now) - set(recorded) <= {"operations"}
    assert not guard.grown(now, recorded)
    assert now["teacher_forwards"] == now["tail_passes"] == now["student_forwards"] == 1


def test_growth_is_noticed_and_shrinking_is_not() -> None:
    before = {"flops": 1000, "calls": 1}
    assert not guard.grown({"flops": 1010, "calls": 1}, before), "within the tolerance"
    assert not guard.grown({"flops": 10, "calls": 0}, before)
    assert guard.grown({"flops": 1100, "calls": 2}, before) == [
        "flops: 1,000 before, 1,100 now",
        "calls: 1 before, 2 now",
    ]
