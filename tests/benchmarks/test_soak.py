"""The soak finds a leak, and what a killed worker would cost; see benchmarks/soak.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soak
from conftest import write_images
from hypothesis import given
from hypothesis import strategies as st


@given(leak=st.floats(-1000, 1000), noise=st.lists(st.floats(-1, 1), min_size=20, max_size=200))
def test_a_leak_is_found(leak: float, noise: list[float]) -> None:
    seconds = [5.0 * number for number in range(len(noise))]
    samples = [(s, 500 + leak * s / 3600 + n, 0.0) for s, n in zip(seconds, noise, strict=True)]
    found = soak.slope(samples, 1)
    # What is left of the noise is at most what its ends would make of it.
    assert abs(found["mib_an_hour"] - leak) <= 4 * 3600 / seconds[-1] + 0.01
    assert abs(found["median_mib"] - 500) <= 1 + abs(leak) * seconds[-1] / 3600


@pytest.mark.parametrize(
    ("gradient", "error", "holds"), [(19.0, 0.1, True), (50.0, 20.0, True), (50.0, 5.0, False), (-50.0, 1.0, True)]
)
def test_memory_is_flat_within_what_a_slope_can_tell(gradient: float, error: float, holds: bool) -> None:
    assert soak.flat({"mib_an_hour": gradient, "standard_error": error}) == holds
    assert not soak.flat({}), "too short to tell"


def test_a_run_that_dies_before_its_first_log_line_is_reported(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "exit(3)"]) as process:
        process.wait()
    report = soak.Run(tmp_path, process, ended=1.0).report(0)
    assert (report["exit_code"], report["log_lines"], report["checkpoints"]) == (3, 0, 0)


@pytest.mark.slow
def test_two_runs_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data" / "train", 50)
    write_images(tmp_path / "data" / "val", 10, seed=1)
    file = tmp_path / "soak.json"
    settings = ["--epochs", "30", "--minutes", "0.1", "--kill-minutes", "0.2", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["soak.py", "--data", str(tmp_path / "data"), *settings])
    soak.main()  # too short to tell how memory grows
    result = json.loads(file.read_text())
    assert result["nothing_lost"]
    assert result["workers_replaced"] == result["workers_killed"] > 0
    assert result["disturbed"]["sha256"] == result["calm"]["sha256"] is not None
