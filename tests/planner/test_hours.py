"""GPU-hours agree with arithmetic by hand."""

from __future__ import annotations

import pytest

from scalekd.errors import UserError
from scalekd.planner import find_device, gpu_hours


def test_hours_by_hand() -> None:
    # 312 TFLOP/s x 0.5 = 156; / 0.156 TFLOP = 1000 images a second; 1.8 M images = 1800 s.
    hours = gpu_hours(156e9, 600_000, 3, find_device("A100").peak_flops, 0.5)
    assert hours.images_per_second == pytest.approx(1000)
    assert hours.hours == pytest.approx(0.5)


def test_arithmetic_names_every_factor() -> None:
    text = gpu_hours(156e9, 600_000, 3, 312e12, 0.5).arithmetic()
    for factor in ("156.00 GFLOP", "312 TFLOP/s", "0.5 ", "156 TFLOP/s", "1,000.0", "600,000", "3 epochs", "0.50"):
        assert factor in text
    assert len(text.splitlines()) == 5


def test_unknown_device() -> None:
    with pytest.raises(UserError, match="did you mean 'a100'"):
        find_device("a1000")
    with pytest.raises(UserError, match=r"known are here \(this machine\), a100, h100"):
        find_device("abacus")


@pytest.mark.parametrize("utilisation", [0, -0.1, 35])
def test_utilisation_is_a_fraction(utilisation: float) -> None:
    with pytest.raises(UserError, match="utilisation"):
        gpu_hours(1e9, 1, 1, 1e12, utilisation)


def test_no_factor_is_zero() -> None:
    with pytest.raises(UserError, match="epochs"):
        gpu_hours(1e9, 1, 0, 1e12, 0.5)
