from __future__ import annotations

import numpy as np
import pytest
import torch

from scalekd.evaluation import fit_linear_head


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_separates_what_is_separable_in_the_features_own_units(classes: int) -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, 6)) * 50
    labels = np.repeat(np.arange(classes), 40)
    features = (centres[labels] + generator.normal(size=(len(labels), 6)) + 1000).astype(np.float32)
    head = fit_linear_head(features, labels)
    assert head.weight.shape == (classes, 6)
    predicted = (torch.from_numpy(features) @ head.weight.T + head.bias).argmax(1)
    assert (predicted.numpy() == labels).mean() == 1
    assert head.heldout == 100
