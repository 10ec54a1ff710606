"""The growth benchmark finds exponents, says what they mean, goes on where it stopped; see benchmarks/growth.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import growth
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


@given(
    power=st.floats(0.01, 3),
    factor=st.floats(1e-6, 1e6),
    sizes=st.lists(st.floats(1, 1e15), min_size=3, max_size=8, unique=True),
)
def test_the_exponent_of_a_power_law_is_found(power: float, factor: float, sizes: list[float]) -> None:
    sizes = [size * 2**index for index, size in enumerate(sorted(sizes))]  # no two so near that rounding decides
    fit = growth.exponent(sizes, [factor * size**power for size in sizes])
    assert fit["exponent"] == pytest.approx(power, abs=1e-6)
    assert fit["spread"] == pytest.approx(0, abs=1e-6)


class Machine:
    """Stands in for the processes that measure: time and memory of a step are powers of its FLOPs."""

    def __init__(self, time: float, memory: float) -> None:
        self.time, self.memory = time, memory
        self.asked: list[dict[str, Any]] = []
        self.breaks_after = 1000

    def measure(self, script: str, flag: str, point: str) -> dict[str, Any]:
        if len(self.asked) == self.breaks_after:
            raise KeyboardInterrupt
        keys = json.loads(point)
        self.asked.append(keys)
        sizes = {"tiny": 1.0, "small": 2.0, "base": 4.0, "large": 9.0}
        teacher, student = (next(v for k, v in sizes.items() if k in keys[name]) for name in ("teacher", "student"))
        flops = keys["batch"] * keys["resolution"] ** 2 * (teacher + student)
        return {name: keys[name] for name in growth.Point.__dataclass_fields__} | {
            "flops": flops,
            "step_seconds": 1e-5 * flops**self.time,
            "peak_mib": 10 * flops**self.memory,
            "teacher_parameters": teacher,
            "student_parameters": student,
        }


def run(monkeypatch: pytest.MonkeyPatch, machine: Machine, *options: str | Path) -> int:
    monkeypatch.setattr(growth, "ask_child", machine.measure)
    monkeypatch.setattr(sys, "argv", ["growth.py", *map(str, options)])
    return growth.main()


def test_what_grows_faster_than_the_flops_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    assert run(monkeypatch, Machine(1.05, 0.5), "--output", file, "--picture", picture, "--quick") == 0
    with Image.open(picture) as image:
        assert image.width > image.height > 500
    fits = json.loads(file.read_text())["axes"]
    assert all(fit["holds"] for fit in fits.values())
    assert fits["resolution"]["time"]["axis"]["exponent"] == pytest.approx(2.1)
    file.unlink()
    assert run(monkeypatch, Machine(0.9, 1.2), "--output", file, "--quick") == 1
    assert "grows faster than the FLOPs along batch, resolution, teacher, student" in capsys.readouterr().out
    assert (tmp_path / "growth.svg").is_file()


def test_a_rerun_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    broken, rest = Machine(1, 1), Machine(1, 1)
    broken.breaks_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, broken, "--output", file)
    assert len(json.loads(file.read_text())["points"]) == 4
    assert run(monkeypatch, rest, "--output", file) == 0
    points = [tuple(point.items()) for point in broken.asked + rest.asked]
    assert len(points) == len(set(points)) == len(json.loads(file.read_text())["points"])
    other = Machine(1, 1)
    assert run(monkeypatch, other, "--output", file, "--steps", "2") == 0
    assert len(other.asked) == len(points), "other settings are measured anew"


def test_wrong_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text("{}x")
    assert run(monkeypatch, Machine(1, 1), "--output", foreign) == 2
    assert capsys.readouterr().err == (
        f"error: output: {foreign} holds no result of this benchmark; remove it or name another\n"
    )
    assert run(monkeypatch, Machine(1, 1), "--output", tmp_path / "nowhere" / "growth.json") == 2
    assert capsys.readouterr().err == f"error: output: no such folder: {tmp_path / 'nowhere'}\n"
