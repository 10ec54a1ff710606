from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn, idctn

from scalekd.methods.mimicking import remove_zero_frequency, view_distance

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(grid=GRIDS, channels=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_removing_the_zero_frequency_is_a_dct_without_its_first_coefficient(
    grid: tuple[int, int], channels: int, seed: int
) -> None:
    maps = random(seed, 2, channels, *grid)
    coefficients = dctn(maps.numpy(), axes=(2, 3), norm="ortho")
    coefficients[:, :, 0, 0] = 0
    expected = torch.from_numpy(idctn(coefficients, axes=(2, 3), norm="ortho")).flatten(2).transpose(1, 2)
    ours = remove_zero_frequency(maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100), batch=st.integers(1, 4))
def test_the_distance_ignores_scale_and_is_bounded(seed: int, scale: float, batch: int) -> None:
    tokens, target = random(seed, batch, 6, 8), random(seed + 1, batch, 6, 8)
    for view in ("spatial", "frequency"):
        distance, cosine = view_distance(tokens, target, view)
        scaled, _ = view_distance(scale * tokens, target / scale, view)
        torch.testing.assert_close(distance, scaled, rtol=1e-4, atol=1e-5)
        assert 0 <= distance <= 4 * 6 + 1e-4
        torch.testing.assert_close(distance, 2 * 6 * (1 - cosine), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**31))
def test_the_frequency_view_does_not_see_a_constant_added_to_a_channel(seed: int) -> None:
    tokens, target, offset = random(seed, 2, 9, 4), random(seed + 1, 2, 9, 4), random(seed + 2, 1, 1, 4)
    near, _ = view_distance(tokens, target, "frequency")
    far, _ = view_distance(tokens + offset, target, "frequency")
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)


def test_the_spatial_view_does_see_it() -> None:
    tokens = random(0, 2, 9, 4)
    distance, _ = view_distance(tokens + 100 * random(1, 1, 1, 4), tokens, "spatial")
    assert distance > 1


def test_equal_tokens_have_no_distance_and_opposite_ones_the_largest() -> None:
    tokens = random(0, 3, 5, 7)
    assert view_distance(tokens, tokens, "spatial")[0] == pytest.approx(0, abs=1e-9)
    assert view_distance(-tokens, tokens, "spatial")[0] == pytest.approx(4 * 5, rel=1e-6)


def test_a_hand_computed_distance() -> None:
    tokens = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])  # normalised: (0.6, 0.8), (0, 1)
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    distance, cosine = view_distance(tokens, target, "spatial")
    assert distance == pytest.approx((0.4**2 + 0.8**2) + 0)
    assert cosine == pytest.approx((0.6 + 1) / 2)


def test_a_single_position_has_no_frequency_view() -> None:
    assert view_distance(random(0, 2, 1, 4), random(1, 2, 1, 4), "frequency")[0] == 0
