"""Computes the paper's figures: spectra of tokens, distances between tokens, CAP's attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from scalekd.methods.mimicking import remove_zero_frequency
from scalekd.methods.outputs import MapShape, StudentOutputs
from scalekd.methods.projector import CrossAttention
from scalekd.methods.scalekd import ScaleKD

Floats = NDArray[np.float64]


def energy_shares(tokens: Tensor, grid: MapShape) -> Floats:
    """Compute the share of each frequency in the energy of tokens (ScaleKD section 3.2, the frequency view).

    Each channel of an image is a picture on the grid. The orthonormal 2-D DCT-II preserves its energy (Parseval), so
    the squared coefficients divided by their sum are shares. Channels with zero energy are left out; the result is the
    unweighted mean over the remaining images and channels.

    Args:
        tokens: `[B, N, D]`.
        grid: Their grid `H x W`.

    Returns:
        `[H, W]`, sums to 1; `(0, 0)` is the zero frequency. NaN if all channels have zero energy.
    """
    maps = tokens.detach().double().cpu().numpy().reshape(len(tokens), grid.height, grid.width, -1)
    energy = np.square(dctn(maps, axes=(1, 2), norm="ortho"))
    total = energy.sum((1, 2), keepdims=True)
    shares = np.divide(energy, total, out=np.full_like(energy, np.nan), where=total > 0)
    channels = shares.transpose(0, 3, 1, 2).reshape(-1, grid.height, grid.width)
    kept: Floats = channels[~np.isnan(channels[:, 0, 0])]
    return np.asarray(kept.mean(0)) if len(kept) else np.full((grid.height, grid.width), np.nan)


def bands(shares: Floats) -> Floats:
    """Sum shares `[H, W]` over frequencies of equal `u + v`: `[H + W - 1]`, zero frequency first."""
    height, width = shares.shape
    number = np.add.outer(np.arange(height), np.arange(width))
    return np.bincount(number.ravel(), weights=shares.ravel()).astype(np.float64)


def decades(shares: Floats) -> Floats:
    """Map shares to a logarithmic scale of three decades: the largest becomes 1, a thousandth of it or less 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(1 + np.log10(shares / shares.max()) / 3, 0, 1))


def distances(tokens: Tensor, target: Tensor, view: str) -> Tensor:
    """Compute the terms that one view of DFM sums, `|| f^ - T^ ||^2` of each position `[B, N]`; see `view_distance`.

    They are squared distances of normalised tokens and lie between 0 and 4.
    """
    tokens, target = tokens.float(), target.float()
    if view == "frequency":
        tokens, target = remove_zero_frequency(tokens), remove_zero_frequency(target)
    return (F.normalize(tokens, dim=-1) - F.normalize(target, dim=-1)).square().sum(-1)


def mimicked(method: ScaleKD, student: StudentOutputs) -> dict[str, dict[str, Tensor]]:
    """Compute the tokens `[B, N, D]` that are compared with the teacher's, by place (`proxy`, `student`) and view."""
    places: dict[str, dict[str, Tensor]] = {}
    if method.tpp is not None:
        places["proxy"] = method.tpp(student.previous, method.teacher.tail)
    if method.last is not None:
        places["student"] = method.last(student.last, places["proxy"] if method.query == "proxy" else None)
    return places


def compared(method: ScaleKD, student: StudentOutputs, target: Tensor) -> dict[str, dict[str, Tensor]]:
    """Compute distances `[B, N]` to the teacher's tokens, by place and by what is compared.

    In addition to the distances in the loss, the spatial projector's tokens are compared without the zero frequency.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for place, tokens in mimicked(method, student).items():
        found[place] = {f"{view} view": distances(values, target, view) for view, values in tokens.items()}
        if "spatial" in tokens:
            name = "spatial projector, zero frequency removed"
            found[place][name] = distances(tokens["spatial"], target, "frequency")
    return found


def attention(layer: CrossAttention, query: Tensor, context: Tensor) -> Tensor:
    """Compute how much each query attends to each position of the student's map (ScaleKD section 3.1).

    Args:
        layer: CAP's attention.
        query: `[B or 1, Nq, D]`.
        context: `[B, M, C]`.

    Returns:
        `[B, Nq, M]`, averaged over heads; sums to 1 over `M`.
    """

    def heads(x: Tensor) -> Tensor:  # B x N x D -> B x heads x N x D/heads
        return x.view(*x.shape[:-1], layer.num_heads, -1).transpose(1, 2)

    q, k = heads(layer.q(query)), heads(layer.k(context))
    weights: Tensor = (q.float() * layer.scale @ k.float().transpose(-2, -1)).softmax(-1)
    return weights.mean(1)


@contextmanager
def attention_of(method: ScaleKD) -> Iterator[dict[str, Tensor]]:
    """Record the attention of each projector in every forward inside the context.

    Yields:
        A dictionary that a forward fills; its keys are `CAP_prev, spatial` and so on.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: CrossAttention, inputs: tuple[Tensor, Tensor]) -> None:
        found[name] = attention(layer, *inputs)

    previous = None if method.tpp is None else method.tpp.previous
    places = {"CAP_prev": previous, "CAP_last": method.last}
    hooks = [
        cap.attn.register_forward_pre_hook(partial(keep, f"{place}, {view}"))
        for place, mimicking in places.items()
        if mimicking is not None
        for view, cap in mimicking.projectors.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_maps(method: ScaleKD, images: Tensor) -> dict[str, Tensor]:
    """Compute each projector's attention for images `[B, 3, h, w]`: `[B, Nq, h', w']` over the student's map."""
    maps = dict(zip(("CAP_prev", "CAP_last"), method.student.maps, strict=True))
    with attention_of(method) as found:
        mimicked(method, method.student(images))
    shaped = {}
    for name, weights in found.items():
        size = maps[name.partition(",")[0]]
        shaped[name] = weights.reshape(*weights.shape[:2], size.height, size.width).cpu()
    return shaped
