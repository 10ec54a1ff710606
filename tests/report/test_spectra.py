from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scalekd.methods.mimicking import view_distance
from scalekd.methods.outputs import MapShape
from scalekd.methods.projector import CrossAttention
from scalekd.methods.scalekd import ScaleKD
from scalekd.models import Student, Teacher
from scalekd.report.charts import ticks
from scalekd.report.predictions import Answer, confusion, mistaken, worst
from scalekd.report.series import epoch_means, thin, training_seconds
from scalekd.report.spectra import attention, attention_maps, bands, distances, energy_shares

SIDES = st.integers(1, 6)


def random_tokens(height: int, width: int, seed: int) -> Tensor:
    return torch.randn(2, height * width, 3, generator=torch.Generator().manual_seed(seed))


@given(SIDES, SIDES, st.integers(0, 99))
def test_energy_shares_and_their_bands_sum_to_one(height: int, width: int, seed: int) -> None:
    shares = energy_shares(random_tokens(height, width, seed), MapShape(3, height, width))
    assert shares.shape == (height, width)
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1)
    assert bands(shares).sum() == pytest.approx(1)
    assert bands(shares)[0] == shares[0, 0]


@given(SIDES, SIDES, st.floats(0.1, 100))
def test_a_constant_map_has_all_its_energy_at_the_zero_frequency(height: int, width: int, level: float) -> None:
    shares = energy_shares(torch.full((1, height * width, 2), level), MapShape(2, height, width))
    assert shares[0, 0] == pytest.approx(1)


@given(SIDES, SIDES, st.integers(0, 99))
def test_the_zero_frequencys_share_is_the_energy_of_the_mean(height: int, width: int, seed: int) -> None:
    tokens = random_tokens(height, width, seed).double()
    expected = height * width * tokens.mean(1).square() / tokens.square().sum(1)
    assert energy_shares(tokens, MapShape(3, height, width))[0, 0] == pytest.approx(float(expected.mean()))


def test_a_cosine_is_where_its_frequency_is_and_empty_channels_do_not_count() -> None:
    wave = torch.cos(math.pi * (torch.arange(4) + 0.5) * 2 / 4)
    tokens = torch.zeros(1, 3, 4, 2)
    tokens[..., 0] = wave  # along the width; the second channel is empty
    shares = energy_shares(tokens.reshape(1, 12, 2), MapShape(2, 3, 4))
    assert shares[0, 2] == pytest.approx(1)
    assert np.isnan(energy_shares(torch.zeros(1, 12, 2), MapShape(2, 3, 4))).all()


@pytest.mark.parametrize("view", ["spatial", "frequency"])
def test_distances_are_those_that_the_loss_sums(view: str) -> None:
    tokens, target = random_tokens(3, 4, 0), random_tokens(3, 4, 1)
    each = distances(tokens, target, view)
    assert each.shape == (2, 12)
    assert float(each.sum() / 2) == pytest.approx(float(view_distance(tokens, target, view)[0]), rel=1e-5)


def test_attention_is_what_the_projector_attends_with() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(context_dim=6, dim=8, num_heads=1, softmax_scale=5.0)
    query, context = torch.randn(1, 4, 8), torch.randn(3, 10, 6)
    weights = attention(layer, query, context)
    assert torch.allclose(layer.out(weights @ layer.v(context)), layer(query, context), atol=1e-5)


def test_attention_maps_are_of_each_projector_and_leave_no_hook(teacher: Teacher, student: Student) -> None:
    method = ScaleKD(teacher, student).eval()
    maps = attention_maps(method, torch.rand(2, 3, 32, 32))
    assert list(maps) == ["CAP_prev, spatial", "CAP_prev, frequency", "CAP_last, spatial", "CAP_last, frequency"]
    for weights in maps.values():
        assert weights.shape == (2, 16, 4, 4)
        assert torch.allclose(weights.sum((-2, -1)), torch.ones(2, 16), atol=1e-5)
    assert not any(module._forward_pre_hooks for module in method.modules())
    alone = ScaleKD(teacher, student, tpp=False, alpha={"frequency": 1.0}).eval()
    assert list(attention_maps(alone, torch.rand(1, 3, 32, 32))) == ["CAP_last, frequency"]


def test_wrong_answers_are_counted_and_ranked() -> None:
    given_answers = [Answer(0, 0, 0, 0.9, 0.9), Answer(1, 0, 1, 0.2, 0.7), Answer(2, 2, 1, 0.1, 0.8)]
    counts = confusion(given_answers, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert mistaken(counts, 5) == [(0, 1, 1), (2, 1, 1)]
    assert [answer.image for answer in worst(given_answers, 5)] == [2, 1]


def test_answers_are_the_softmax_of_the_logits() -> None:
    from scalekd.report.predictions import answers

    logits = torch.tensor([[0.0, 2.0]])
    (answer,) = answers(logits, torch.tensor([0]), torch.tensor([7]))
    expected = functional.softmax(logits, -1)[0].tolist()
    assert answer[:3] == (7, 0, 1)
    assert answer[3:] == pytest.approx(expected)


def test_epoch_means_end_where_their_epoch_does() -> None:
    curve = [(1.0, 1.0), (2.0, 3.0), (3.0, 5.0)]  # two steps an epoch, the second epoch not over
    assert epoch_means(curve, 2) == [(2.0, 2.0), (3.0, 5.0)]


@given(st.integers(1, 2000), st.integers(2, 300))
def test_thinned_curves_keep_their_end_and_their_bounds(length: int, most: int) -> None:
    curve = [(float(step), float(step % 7)) for step in range(length)]
    thinned = thin(curve, most)
    assert len(thinned) <= max(most, 1)
    assert thinned[-1] == curve[-1]
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert all(0 <= y <= 6 for _, y in thinned)


def test_training_time_is_what_the_speeds_add_up_to() -> None:
    lines = [{"step": 10, "images_per_second": 5.0}, {"step": 20, "lr": 1.0}, {"step": 30, "images_per_second": 10.0}]
    assert training_seconds(lines, 4) == 10 * 4 / 5 + 20 * 4 / 10
    assert training_seconds([*lines, {"step": 40, "lr": 1.0}], 4) == 10 * 4 / 5 + 30 * 4 / 10
    assert training_seconds([{"step": 1.0}], 4) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within_the_axis(low: float, extent: float) -> None:
    found = ticks(low, low + extent)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * extent <= tick <= low + extent * (1 + 1e-6) for tick in found)
