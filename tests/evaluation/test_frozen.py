from __future__ import annotations

import numpy as np
import pytest
import torch

from scalekd.evaluation import Features, knn_accuracy, linear_accuracy


def clouds(seed: int, per_class: int, spread: float) -> Features:
    """Three directions in eight dimensions with noise, at lengths that say nothing."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    values = np.eye(8)[labels] + spread * generator.standard_normal((len(labels), 8))
    return Features((values * generator.uniform(0.1, 10, (len(labels), 1))).astype(np.float32), labels)


def vote(train: Features, val: Features, k: int, temperature: float) -> float:
    """DINO's k-NN, spelt out: the k largest cosines, each a vote of exp(cosine / temperature)."""
    one, other = (torch.nn.functional.normalize(torch.from_numpy(part.values), dim=1) for part in (train, val))
    cosines, nearest = (other @ one.T).topk(k)
    classes = torch.nn.functional.one_hot(torch.from_numpy(train.labels)[nearest], 3)
    votes = (classes * (cosines / temperature).exp()[..., None]).sum(1)
    return 100 * float((votes.argmax(1) == torch.from_numpy(val.labels)).float().mean())


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_neighbours_vote_as_in_dino(temperature: float) -> None:
    train, val = clouds(0, 40, 0.6), clouds(1, 30, 0.6)
    expected = vote(train, val, 20, temperature)
    assert 50 < expected < 99
    assert knn_accuracy(train, val, k=20, temperature=temperature) == pytest.approx(expected)


def test_few_images_are_all_neighbours() -> None:
    assert knn_accuracy(clouds(0, 3, 0.01), clouds(1, 5, 0.01)) == 100


def test_a_probe_separates_what_is_separable() -> None:
    assert linear_accuracy(clouds(0, 20, 0.05), clouds(1, 20, 0.05)) == 100
    assert linear_accuracy(clouds(0, 20, 5.0), clouds(1, 20, 5.0)) < 70
