"""A plain transcription of ScaleKD (arXiv 2411.06786, section 3), with which the benchmark compares the package.

It follows the paper's equations one by one, in float32, and shares no CAP, DFM or TPP code with the package: explicit
cosine matrices for the frequency view, explicit softmax attention, one proxy at a time through the teacher's tail.
Only the two timm models, behind `Teacher` and `Student`, are the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher
from scalekd.methods.outputs import MapShape

ALPHA = {"spatial": 0.08, "frequency": 0.06}
SOFTMAX_SCALE = 5.0
LOGIT_WEIGHT = 0.5

# Our parameter names -> the package's, for `copy_projectors`.
_NAMES = {
    "stem": "stem.conv",
    "stem_norm": "stem.norm",
    "position": "pos_embed",
    "table": "query",
    "to_query": "query_proj",
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.out",
    "norm": "norm",
    "hidden": "ffn.fc1",
    "widen": "ffn.fc2",
}


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `[B, C, h, w]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Projector(nn.Module):
    """CAP: student map `[B, C, h, w]` -> tokens `[B, Nq, Dq]`.

    Args:
        student: Shape of the student map.
        tokens: Shape of the tokens to return.
        num_heads: Attention heads.
        stem_norm: `batchnorm` or `layernorm2d`.
        learned_query: Whether the query is a learned table.
    """

    def __init__(
        self, student: MapShape, tokens: MapShape, *, num_heads: int, stem_norm: str, learned_query: bool
    ) -> None:
        super().__init__()
        channels, dim = student.channels, tokens.channels
        self.num_heads = num_heads
        self.stem = nn.Conv2d(channels, channels, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(channels) if stem_norm == "batchnorm" else ChannelNorm(channels, eps=1e-6)
        self.position = nn.Parameter(0.02 * torch.randn(1, channels, student.height, student.width))
        self.table = nn.Parameter(torch.randn(1, tokens.positions, dim)) if learned_query else None
        self.to_query = nn.Linear(dim, dim)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(channels, dim)
        self.v = nn.Linear(channels, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, 4 * dim)
        self.widen = nn.Linear(4 * dim, dim)

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """`features` `[B, C, h, w]`, `query` `[B, Nq, Dq]` if there is no table -> `[B, Nq, Dq]`."""
        x = F.relu(self.stem_norm(self.stem(features))) + self.position
        x = x.flatten(2).transpose(1, 2)  # BxCxhxw -> Bx(hw)xC
        if self.table is not None:
            query = self.table.repeat(len(x), 1, 1)
        query = self.q(F.relu(self.to_query(query)))
        f = self.norm(self.out(self._attend(query, self.k(x), self.v(x))))
        tokens: Tensor = f + self.widen(F.relu(self.hidden(f)))
        return tokens

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`softmax(scale Q K^T) V` of each head, `[B, Nq, Dq]`."""

        def split(x: Tensor) -> Tensor:  # BxNxD -> B x heads x N x D/heads
            return x.reshape(len(x), x.shape[1], self.num_heads, -1).transpose(1, 2)

        query, key, value = split(query), split(key), split(value)
        logits = query @ key.transpose(-2, -1) * (SOFTMAX_SCALE / math.sqrt(query.shape[-1]))
        return (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def cosine_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix `C` `[size, size]`: `C x` is the transform of `x`, `C^T` the inverse."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * k * (2 * n + 1) / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class ViewDistance(nn.Module):
    """DFM's distance on one grid, `1/B sum_b sum_p || f^ - T^ ||^2`.

    Args:
        grid: Shape of the teacher's final tokens.
    """

    rows: Tensor
    columns: Tensor
    mask: Tensor

    def __init__(self, grid: MapShape) -> None:
        super().__init__()
        self.grid = (grid.height, grid.width)
        mask = torch.ones(self.grid)
        mask[0, 0] = 0
        self.register_buffer("rows", cosine_matrix(grid.height))
        self.register_buffer("columns", cosine_matrix(grid.width))
        self.register_buffer("mask", mask)

    def forward(self, tokens: Tensor, target: Tensor, view: str) -> Tensor:
        """`tokens` and `target` `[B, N, D]` -> scalar."""
        if view == "frequency":
            tokens, target = self.alternating(tokens), self.alternating(target)
        return (unit(tokens) - unit(target)).square().sum() / len(tokens)

    def alternating(self, tokens: Tensor) -> Tensor:
        """2-D DCT over the grid, coefficient (0, 0) set to 0, inverse DCT; `[B, N, D]`."""
        x = tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid)  # BxNxD -> BxDxHxW
        x = self.rows @ x @ self.columns.T * self.mask
        x = self.rows.T @ x @ self.columns
        return x.flatten(2).transpose(1, 2)


def unit(tokens: Tensor) -> Tensor:
    """L2-normalise the channels of each position."""
    return tokens / tokens.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)


class Transcription(nn.Module):
    """ScaleKD with the paper's settings: teacher, student, projectors, losses.

    Args:
        teacher: The teacher, in float32.
        student: The student to train.
    """

    def __init__(self, teacher: Teacher, student: Student) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        (previous, last), (head_prev, head_last) = student.maps, teacher.heads
        norm = student.stem_norm
        self.previous = nn.ModuleDict()
        self.last = nn.ModuleDict()
        for view in ALPHA:
            self.previous[view] = Projector(
                previous, teacher.tail_input, num_heads=head_prev, stem_norm=norm, learned_query=True
            )
            self.last[view] = Projector(last, teacher.tokens, num_heads=head_last, stem_norm=norm, learned_query=False)
        self.distance = ViewDistance(teacher.tokens)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """`images` `[B, 3, h, w]` in [0, 1], `labels` `[B]` -> the total loss."""
        teacher, student = self.teacher(images), self.student(images)
        total: Tensor = (1 - LOGIT_WEIGHT) * F.cross_entropy(student.logits, labels)
        soft = teacher.logits.softmax(dim=-1)
        total = total - LOGIT_WEIGHT * (soft * student.logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        for view, alpha in ALPHA.items():
            proxy = self.teacher.tail(self.previous[view](student.previous))
            tokens = self.last[view](student.last, proxy)
            total = total + alpha * self.distance(proxy, teacher.tokens, view)
            total = total + alpha * self.distance(tokens, teacher.tokens, view)
        return total


def copy_projectors(method: ScaleKD, plain: Transcription) -> None:
    """Copy the projectors' parameters of `method` to the transcription; none may be missing or left over."""
    assert method.tpp is not None
    assert method.last is not None
    places = ((plain.previous, method.tpp.previous), (plain.last, method.last))
    for copies, place in places:
        for view, projector in place.projectors.items():
            theirs, copy = projector.state_dict(), copies[view]
            names = {key: _their_name(key) for key in copy.state_dict()}
            assert set(names.values()) == set(theirs), "the projectors' parameters have other names than expected"
            copy.load_state_dict({key: theirs[name] for key, name in names.items()})


def _their_name(key: str) -> str:
    head, dot, tail = key.partition(".")
    return _NAMES[head] + dot + tail
