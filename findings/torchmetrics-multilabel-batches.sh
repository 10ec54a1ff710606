#!/usr/bin/env bash
# torchmetrics 1.9.0, MultilabelAveragePrecision: the same logits give another value if they come in two batches. Logits
# are turned into probabilities batch by batch, and only in batches with a value outside [0, 1]; a batch whose logits all
# lie inside is kept as it is, so that images of different batches are ranked on two scales. Besides, the mean over the
# labels counts a label that no image has as 0, though the code says that such labels are left out.
# Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torchmetrics
from torchmetrics.classification import MultilabelAveragePrecision

print("torchmetrics", torchmetrics.__version__)
# Both labels rank the images in the right order: the two positive ones have the largest logits.
logits = torch.tensor([[0.4, 0.4], [0.1, 0.1], [3.0, 3.0], [-0.2, -0.2]])
labels = torch.tensor([[1, 1], [0, 0], [1, 1], [0, 0]])


def average_precision(*sizes):
    metric = MultilabelAveragePrecision(num_labels=2, average="macro")
    for part in zip(logits.split(sizes), labels.split(sizes)):
        metric.update(*part)
    return metric.compute().item()


together, apart = average_precision(4), average_precision(2, 2)
print(f"one batch {together:.4f}, the same in two batches {apart:.4f}")
assert abs(together - 1) < 1e-6, "this has changed: the ranking is right"
assert abs(apart - 5 / 6) < 1e-6, "this has changed: batches are on one scale"

absent = MultilabelAveragePrecision(num_labels=2, average="macro")
absent.update(logits, labels * torch.tensor([1, 0]))
print(f"a perfect label and one that no image has: {absent.compute().item():.4f}")
assert abs(absent.compute().item() - 0.5) < 1e-6, "this has changed: labels without images are left out"
PYTHON
