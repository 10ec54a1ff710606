"""Storage format of a teacher's outputs: which tensors, of which type, and how many images per file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalekd.methods.outputs import TeacherOutputs

SHARD_BYTES = 64 * 2**20  # also the most that an interrupted process has to compute again
_MULTIPLE = 64  # images per shard are a multiple of this, so that the usual batch sizes divide it


@dataclass(frozen=True)
class Layout:
    """What is stored for each image: final tokens `T` `[N, D]` and, if the teacher has a head, logits `[K]`.

    Attributes:
        positions: `N`.
        width: `D`.
        classes: `K`, 0 without a head.
        dtype: The run's autocast type: outputs are returned in it, and logits are stored in it.
        cache_format: Tokens as `bf16`, or as `int8` with one float32 scale per token.
    """

    positions: int
    width: int
    classes: int
    dtype: torch.dtype
    cache_format: str

    @property
    def exact(self) -> bool:
        """Whether the outputs read are bitwise equal to those of the live teacher."""
        return self.cache_format == "bf16" and self.dtype == torch.bfloat16

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's tensors, without the file's header (under 1 kB per file)."""
        token = 2 * self.width if self.cache_format == "bf16" else self.width + 4
        return self.positions * token + self.classes * self.dtype.itemsize

    @property
    def images_per_shard(self) -> int:
        """Images per file, for files of up to about 64 MiB."""
        images = max(1, SHARD_BYTES // self.bytes_per_image)
        return images // _MULTIPLE * _MULTIPLE or images

    def shapes(self, images: int) -> dict[str, list[int]]:
        """Return the shapes of the tensors in a file of that many images."""
        shapes = {"tokens": [images, self.positions, self.width]}
        if self.cache_format == "int8":
            shapes["scale"] = [images, self.positions]
        if self.classes:
            shapes["logits"] = [images, self.classes]
        return shapes

    def encode(self, outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Convert a batch's outputs to the tensors that are stored."""
        kept = {} if outputs.logits is None else {"logits": outputs.logits.cpu()}
        if self.cache_format == "bf16":
            return kept | {"tokens": outputs.tokens.to("cpu", torch.bfloat16)}
        tokens = outputs.tokens.float()
        scale = tokens.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return kept | {"tokens": (tokens / scale[..., None]).round().to("cpu", torch.int8), "scale": scale.cpu()}

    def decode(self, kept: dict[str, Tensor]) -> TeacherOutputs:
        """Convert stored tensors back to teacher outputs in `dtype`; the inverse of `encode`."""
        tokens = kept["tokens"]
        if self.cache_format == "int8":
            tokens = tokens.float() * kept["scale"][..., None]
        return TeacherOutputs(tokens.to(self.dtype), kept.get("logits"))
