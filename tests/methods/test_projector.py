from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekd.methods.outputs import MapShape
from scalekd.methods.projector import CrossAttentionProjector, LayerNorm2d


@settings(max_examples=25, deadline=None)
@given(
    student_grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    teacher_grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    heads=st.sampled_from([1, 2, 4]),
    learned=st.booleans(),
)
def test_any_student_grid_becomes_the_teachers(
    student_grid: tuple[int, int], teacher_grid: tuple[int, int], heads: int, learned: bool
) -> None:
    tokens = MapShape(8, *teacher_grid)
    cap = CrossAttentionProjector(MapShape(6, *student_grid), tokens, num_heads=heads, learned_query=learned)
    query = None if learned else torch.randn(2, tokens.positions, 8)
    assert cap(torch.randn(2, 6, *student_grid), query).shape == (2, tokens.positions, 8)


def test_attention_is_the_papers() -> None:
    """Against explicit softmax attention with the factor 5 / sqrt(head width), the residual on the normalised f."""
    torch.manual_seed(0)
    cap = CrossAttentionProjector(MapShape(6, 3, 2), MapShape(8, 2, 2), num_heads=2, softmax_scale=5.0)
    features = torch.randn(4, 6, 3, 2)
    context = (cap.stem(features) + cap.pos_embed).flatten(2).transpose(1, 2)
    assert cap.query is not None
    query = F.relu(cap.query_proj(cap.query.expand(4, -1, -1)))
    q, k, v = cap.attn.q(query), cap.attn.k(context), cap.attn.v(context)
    heads = [
        (q[..., part] @ k[..., part].transpose(1, 2) * 5 / math.sqrt(4)).softmax(-1) @ v[..., part]
        for part in (slice(0, 4), slice(4, 8))
    ]
    f = F.layer_norm(cap.attn.out(torch.cat(heads, -1)), (8,))
    expected = f + cap.ffn(f)
    torch.testing.assert_close(cap(features), expected, rtol=1e-5, atol=1e-5)


def test_the_channel_layernorm_normalises_each_position() -> None:
    x = torch.randn(2, 5, 3, 3)
    out = LayerNorm2d(5)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 3, 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("setting", "named"), [({"num_heads": 3}, "heads"), ({"stem_norm": "groupnorm"}, "stem_norm")])
def test_settings_that_do_not_fit_are_named(setting: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CrossAttentionProjector(MapShape(6, 3, 2), MapShape(8, 2, 2), **({"num_heads": 2} | setting))  # type: ignore[arg-type]
