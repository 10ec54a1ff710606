"""The progress bar of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scalekd.engine.display import Display

TERMS = "task 0.55 kd 0.55 proxy_spatial 2.99 proxy_frequency 3.10 student_spatial 2.20 student_frequency 3.00"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_terms_give_way_before_the_bar_and_the_time(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    display = Display(console, batch=32, steps=10_000, steps_per_epoch=100)
    display._bar.update(display._task, completed=250, epoch=3, speed="24 img/s  data wait 8%", terms=TERMS)
    with console.capture() as shown:
        console.print(display._bar.get_renderable())
    (line,) = shown.get().splitlines()
    assert len(line) <= width
    for part in ("epoch 3/100", "250/10000", "-:--:--", "24 img/s"):
        assert part in line
    assert ("student_frequency" in line) == (width == 200)
