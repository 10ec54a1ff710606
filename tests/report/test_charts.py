from __future__ import annotations

import pytest

from scalekd.report.charts import Chart, Series
from scalekd.report.series import Points


@pytest.mark.parametrize(
    ("points", "across"),
    [([(8.0, 50.0)], (0.0, 8.0)), ([(1.0, 40.0), (8.0, 50.0)], (1.0, 8.0)), ([(0.0, 50.0)], (-0.5, 0.5))],
    ids=["one epoch", "several", "only 0"],
)
def test_a_single_validation_stands_at_the_end_of_its_epochs(points: Points, across: tuple[float, float]) -> None:
    assert Chart("top1", "epoch", [Series("run", points)]).ranges[0] == across
