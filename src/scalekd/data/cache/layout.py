"""How a teacher's outputs are kept: which tensors, of which type, how many images a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalekd.method import TeacherOutputs

SHARD_BYTES = 64 * 2**20  # what an interrupted process has to make again, at most
_MULTIPLE = 64  # images a shard, so that the usual batches fill it


@dataclass(frozen=True)
class Layout:
    """What is kept of an image: final tokens `T` `[N, D]` and, where the teacher has a head, logits `[K]`.

    Attributes:
        positions: `N`.
        width: `D`.
        classes: `K`, 0 without a head.
        dtype: The run's autocast type: outputs are given back in it, and logits kept.
        cache_format: Tokens as `bf16`, or as `int8` with a float32 scale for each.
    """

    positions: int
    width: int
    classes: int
    dtype: torch.dtype
    cache_format: str

    @property
    def exact(self) -> bool:
        """Whether what is read is what was written, to the bit."""
        return self.cache_format == "bf16" and self.dtype == torch.bfloat16

    @property
    def bytes_per_image(self) -> int:
        """Bytes of an image's tensors; a file's header comes on top, under 1 kB."""
        token = 2 * self.width if self.cache_format == "bf16" else self.width + 4
        return self.positions * token + self.classes * self.dtype.itemsize

    @property
    def images_per_shard(self) -> int:
        """Images that a file holds, of up to about 64 MiB."""
        images = max(1, SHARD_BYTES // self.bytes_per_image)
        return images // _MULTIPLE * _MULTIPLE or images

    def shapes(self, images: int) -> dict[str, list[int]]:
        """Tensors of a file of that many images."""
        shapes = {"tokens": [images, self.positions, self.width]}
        if self.cache_format == "int8":
            shapes["scale"] = [images, self.positions]
        if self.classes:
            shapes["logits"] = [images, self.classes]
        return shapes

    def encode(self, outputs: TeacherOutputs) -> dict[str, Tensor]:
        """A batch's outputs as they are kept."""
        kept = {} if outputs.logits is None else {"logits": outputs.logits.cpu()}
        if self.cache_format == "bf16":
            return kept | {"tokens": outputs.tokens.to("cpu", torch.bfloat16)}
        tokens = outputs.tokens.float()
        scale = tokens.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return kept | {"tokens": (tokens / scale[..., None]).round().to("cpu", torch.int8), "scale": scale.cpu()}

    def decode(self, kept: dict[str, Tensor]) -> TeacherOutputs:
        """What was kept as the outputs that a live teacher would give, in `dtype`; the way back of `encode`."""
        tokens = kept["tokens"]
        if self.cache_format == "int8":
            tokens = tokens.float() * kept["scale"][..., None]
        return TeacherOutputs(tokens.to(self.dtype), kept.get("logits"))
