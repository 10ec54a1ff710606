"""A run whose projectors collapse says so once, with the flag to set."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli

from scalekd.tasks.distill import collapse
from scalekd.tasks.distill.collapse import CollapseWatch


def warnings(frequencies: list[float], *, warmup: int = 0, first: int = 100) -> list[str]:
    """Return what the watch says to cosines that are logged every 10 steps."""
    watch = CollapseWatch(warmup, 0.5)
    cosines = [{"proxy_spatial": 0.55, "proxy_frequency": value} for value in frequencies]
    lines = [watch.look(each, first + 10 * number) for number, each in enumerate(cosines)]
    return [line for line in lines if line is not None]


def test_cosines_that_stay_near_zero_are_reported_once() -> None:
    (line,) = warnings([0.0] * 20)
    assert "the cosine proxy_frequency is 0.00 at step 140" in line
    assert "--projector-lr-scale 0.125 (now 0.5)" in line


@pytest.mark.parametrize("frequencies", [[0.3] * 20, [0.0, 0.0, 0.0, 0.0, 0.2] * 4, [0.06] * 20, [0.0] * 4])
def test_runs_that_learn_are_not_disturbed(frequencies: list[float]) -> None:
    assert warnings(frequencies) == []


def test_warm_up_and_the_first_steps_are_not_judged() -> None:
    assert warnings([0.0] * 20, warmup=1000) == []
    assert warnings([0.0] * 4, first=0) == []


def test_a_method_without_a_frequency_view_is_not_judged() -> None:
    watch = CollapseWatch(0, 1.0)
    assert all(watch.look({"student_spatial": 0.0}, step) is None for step in range(100, 200))
    assert all(watch.look({}, step) is None for step in range(100, 200))


@pytest.mark.parametrize(("more", "count"), [((), 1), (("--alpha-frequency", "0"), 0), (("--views", "spatial"), 0)])
def test_a_run_prints_the_warning_if_the_view_counts(
    cli: Cli,
    tmp_path: Path,
    data: Path,
    teacher_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    count: int,
) -> None:
    monkeypatch.setattr(collapse, "COLLAPSED", 1.0)  # every run counts as collapsed
    monkeypatch.setattr(collapse, "_FIRST_STEP", 1)
    flags = ("--teacher", teacher_file, "--data", data, "--output", tmp_path / "run", *TINY_RUN, "--epochs", "3")
    outcome = cli("distill", *flags, "--logit-weight", "0", *more)
    assert outcome.code == 0, outcome.err
    assert "rates     student 0.01, projectors 0.001 (projector_lr_scale 0.1)" in outcome.err
    assert outcome.err.count("warning: the projectors have collapsed") == count
    assert outcome.err.count("--projector-lr-scale 0.025 (now 0.1)") == count
