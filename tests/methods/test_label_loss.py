"""Class weights: rare classes count as much as frequent ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_KEYS, TINY_RUN, Cli
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from scalekd.methods.label_loss import BalancedCrossEntropy, cross_entropy
from scalekd.recipes import load
from scalekd.tasks.distill.setup import Run
from scalekd.tasks.distill.task import DistillationTask


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_weights_are_scikit_learns(smoothing: float) -> None:
    counts = [6, 3, 1]
    loss = BalancedCrossEntropy(counts, smoothing)
    labels = torch.tensor(np.repeat([0, 1, 2], counts))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(loss.weight, torch.tensor(expected, dtype=torch.float32))
    logits = torch.randn(10, 3)
    total = functional.cross_entropy(logits, labels, loss.weight, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), total / 10)


def test_equal_classes_weigh_nothing_and_unlabelled_images_do_not_count() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -1, -1, 0])
    torch.testing.assert_close(BalancedCrossEntropy([4, 4, 4])(logits, labels), cross_entropy(logits, labels))
    one_hot = torch.eye(3)[labels.clamp(min=0)]
    mixed = BalancedCrossEntropy([4, 4, 4])(logits, one_hot)
    torch.testing.assert_close(mixed, cross_entropy(logits, one_hot))
    weight = BalancedCrossEntropy([6, 3, 0]).weight
    torch.testing.assert_close(weight, torch.tensor([0.75, 1.5, 0.0]))


def test_a_run_weighs_the_classes_by_its_own_images(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but four images of one class are deleted."""
    found: list[torch.Tensor] = []
    honest = DistillationTask.__init__

    def noted(self: DistillationTask, learners: list[Run], *args: object, **more: object) -> None:
        loss = learners[0].method.task_loss  # type: ignore[attr-defined]
        found.append(loss.weight)
        honest(self, learners, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(DistillationTask, "__init__", noted)
    images = sorted((data / "train" / "red").iterdir())
    count = len(images)
    for image in images[4:]:
        image.unlink()
    flags = (*TINY_RUN, "--method", "none", "--class-weights", "balanced")
    outcome = cli("distill", "--data", data, *flags, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat([0, 1, 2], [count, count, 4]))
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("keys", [{"task_loss": "bce"}, {"labels": "none", "method": "scalekd"}])
def test_weights_need_labels_and_cross_entropy(keys: dict[str, str]) -> None:
    with pytest.raises(Exception, match="class_weights: needs labels and task_loss cross_entropy"):
        load(None, TINY_KEYS | {"class_weights": "balanced"} | keys)
