"""ScaleKD's settings and which of them can be combined. Imports no torch, so that recipes can check them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

View = Literal["spatial", "frequency"]
Stage = Literal["previous", "last"]
Query = Literal["proxy", "learned"]
Projector = Literal["cap", "linear"]
Stem = Literal["conv3x3", "conv1x1", "none"]
StemNorm = Literal["batchnorm", "layernorm2d"]

VIEWS: tuple[str, ...] = get_args(View)
STAGES: tuple[str, ...] = get_args(Stage)
QUERIES: tuple[str, ...] = get_args(Query)
PROJECTORS: tuple[str, ...] = get_args(Projector)
STEMS: tuple[str, ...] = get_args(Stem)
STEM_NORMS: tuple[str, ...] = get_args(StemNorm)


CAP_SETTINGS = ("heads", "softmax_scale", "stem", "stem_norm")


def refuse_cap_settings(projector: str, given: Sequence[str]) -> None:
    """Raise a ValueError if settings of CAP are given although there is no CAP."""
    if projector == "linear" and given:
        raise ValueError(f"{given[0]}: is of CAP, which linear projectors (lean) replace; leave it out")


def resolve_parts(
    *, tpp: bool, stages: Sequence[str] | None, query: str | None, projector: str
) -> tuple[tuple[str, ...], str]:
    """Return stages and query; those that are None get the default for `tpp`. The query is `none` without CAP.

    Raises:
        ValueError: If the settings cannot be combined; the message names the one to change.
    """
    stages = tuple(stages or (STAGES if tpp else ("last",)))
    if projector == "linear":
        if query is not None:
            raise ValueError("query: a linear projector has none; leave it out, or set projector to cap")
        query = "none"
    query = query or ("proxy" if tpp else "learned")
    if query not in (*QUERIES, "none"):
        raise ValueError(f"query: {query!r} is neither proxy nor learned")
    if query == "proxy" and not tpp:
        raise ValueError("query: proxy needs tpp, which makes the proxies; set query to learned")
    if not set(stages) <= set(STAGES):
        raise ValueError(f"stages: must be one or both of {', '.join(STAGES)}, not {', '.join(stages)}")
    if "previous" in stages and not tpp:
        raise ValueError("stages: previous is compared through the proxies, which need tpp; set stages to last")
    if tpp and "previous" not in stages and query != "proxy":
        raise ValueError("stages: without previous and without the proxy query TPP has no use; switch tpp off")
    return stages, query
