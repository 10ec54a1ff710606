from __future__ import annotations

import pytest
import torch

from scalekd.data import Batch, CorruptImages
from scalekd.evaluation import measure_accuracy
from scalekd.hardware import Compute

CPU = torch.device("cpu")


def test_a_hand_counted_accuracy() -> None:
    """The images carry their logits: four of six classes' first place, five within the first five."""
    order = [[0, 1, 2, 3, 4, 5]] * 6
    logits = torch.tensor(order).float().neg()  # class 0 first, class 5 last
    labels = torch.tensor([0, 0, 0, 0, 4, 5])
    batches = [
        Batch(logits[:4], labels[:4], {}),
        Batch(torch.empty(0), labels[:0], {"bad.png": ""}),
        Batch(logits[4:], labels[4:], {}),
    ]
    accuracy = measure_accuracy(
        lambda images: images,
        batches,
        num_classes=6,
        compute=Compute(CPU, torch.float32),
        corrupt=CorruptImages(1),
    )
    assert accuracy.images == 6
    assert accuracy.figures == pytest.approx({"top1": 100 * 4 / 6, "top5": 100 * 5 / 6})
    assert (accuracy.metric, accuracy.main) == ("top1", accuracy.figures["top1"])
