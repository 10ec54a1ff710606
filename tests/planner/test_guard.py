"""The machine-independent costs of a step have not grown; see benchmarks/guard.py."""

from __future__ import annotations

import guard
import pytest
import torch

SMALLEST = "ViT-Ti/16 -> ViT-Ti/16"  # the others take a minute each


@pytest.mark.parametrize(
    "name", [name if name == SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in guard.PAIRS]
)
def test_a_step_costs_no_more_than_before(name: str) -> None:
    recorded = guard.recorded()[name]
    now = guard.quantities(guard.PAIRS[name])
    assert set(now) - set(recorded) <= {"operations"}
    assert not guard.grown(now, recorded)
    assert now["teacher_forwards"] == now["tail_passes"] == now["student_forwards"] == now["graphs"] == 1
    assert now["teacher_forwards_taught"] == now["graph_breaks"] == now["host_syncs"] == 0


def test_host_syncs_are_noticed() -> None:
    x = torch.arange(4.0)
    operations = guard.Operations()  # type: ignore[no-untyped-call]
    with operations:
        x[torch.tensor([0, 2])].sum()
    assert operations.host_syncs == 0, "indices are no mask"
    for wait in (lambda: x[x > 1], lambda: x.sum().item(), lambda: bool(x.any()), x.nonzero):
        operations = guard.Operations()  # type: ignore[no-untyped-call]
        with operations:
            wait()
        assert operations.host_syncs


def test_growth_is_noticed_and_shrinking_is_not() -> None:
    before = {"flops": 1000, "calls": 1}
    assert not guard.grown({"flops": 1010, "calls": 1}, before), "within the tolerance"
    assert not guard.grown({"flops": 10, "calls": 0}, before)
    assert guard.grown({"flops": 1100, "calls": 2}, before) == [
        "flops: 1,000 before, 1,100 now",
        "calls: 1 before, 2 now",
    ]
    assert guard.grown({"breaks": 1}, {"breaks": 0}) == ["breaks: 0 before, 1 now"]
