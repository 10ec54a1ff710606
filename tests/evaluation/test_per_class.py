"""Figures of each class agree with scikit-learn's, in `evaluate` and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RUN, Cli
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from scalekd.evaluation.per_class import balanced_accuracy, class_figures


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_the_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, answers = random.integers(0, 4, 200), random.integers(0, 5, 200)  # class 4 never occurs
    counts = [
        (
            int(((labels == k) & (answers == k)).sum()),
            int(((labels != k) & (answers == k)).sum()),
            int((labels == k).sum()),
        )
        for k in range(6)  # class 5 is not even answered
    ]
    found = class_figures([str(k) for k in range(6)], counts)
    expected = precision_recall_fscore_support(labels, answers, labels=range(6), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        ours = [np.nan if getattr(each, name) is None else getattr(each, name) / 100 for each in found]
        assert ours == pytest.approx(values, nan_ok=True)
    assert [each.images for each in found] == expected[3].tolist()
    known = labels < 4
    assert balanced_accuracy(found) / 100 == pytest.approx(balanced_accuracy_score(labels[known], answers[known]))


def test_evaluate_and_the_report_show_them(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("distill", "--data", data, "--output", run, *TINY_RUN, "--method", "none").code == 0
    shown = cli("evaluate", run, "--per-class")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[1].split() == ["class", "images", "precision", "recall", "F1"]
    assert {line.split()[0] for line in lines[2:5]} == {"blue", "green", "red"}
    assert "balanced top1" in lines[-1]
    found = json.loads(cli("evaluate", run, "--per-class", "--json").out)
    assert found["balanced_top1"] == pytest.approx(found["top1"]), "all classes have two images"
    assert [each["images"] for each in found["per_class"]] == [2, 2, 2]
    assert "per_class" not in json.loads(cli("evaluate", run, "--json").out)
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "Precision, recall and F1 of each class" in page
    first = min(found["per_class"], key=lambda each: each["f1"])
    assert f"<td>{first['images']}</td>" in page
    cli("evaluate", run, "--per-class", "--knn").refused("per-class", "--knn")
