"""`feature_schedule: falling` lets the feature terms fall to 0 in the run; the paper's keeps their weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("falling", [1, 0.75, 0.5, 0.25])],
    ids=["constant", "falling"],
)
@pytest.mark.parametrize("micro_batch", [6, 3])
def test_the_weight_of_the_features_follows_the_step(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, schedule: str, factors: list[float], micro_batch: int
) -> None:
    run = tmp_path / "run"
    outcome = cli(
        *("distill", "--data", data, "--output", run, "--teacher", teacher_file, "--no-check-teacher", *TINY_RUN),
        *("--method", "fd", "--feature-schedule", schedule, "--micro-batch", str(micro_batch)),
    )
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/feature" in line]
    # The distance is a multiple of 1 - cosine, so that their ratio is the weight.
    weights = [line["train/feature"] / (1 - line["cosine/feature"]) for line in steps]
    assert [weight / weights[0] for weight in weights] == pytest.approx(factors, rel=1e-4)


def test_methods_without_feature_terms_refuse_it(cli: Cli, data: Path, teacher_file: Path, tmp_path: Path) -> None:
    refused = cli(
        *("distill", "--data", data, "--output", tmp_path / "run", "--teacher", teacher_file, *TINY_RUN),
        *("--method", "kd", "--feature-schedule", "falling"),
    )
    refused.refused("feature_schedule", "fd, scalekd")
