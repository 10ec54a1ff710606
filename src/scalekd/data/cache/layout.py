"""Storage format of a teacher's outputs: which tensors, of which type, and how many images per file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekd.data.loader import ALL, CachedOutputs
from scalekd.methods.outputs import TeacherOutputs
from scalekd.methods.share import FeatureShare

SHARD_BYTES = 64 * 2**20  # also the most that an interrupted process has to compute again
_MULTIPLE = 64  # images per shard are a multiple of this, so that the usual batch sizes divide it


@dataclass(frozen=True)
class Layout:
    """What is stored for each image: logits `[K]` if the teacher has a head, and the final tokens `T` `[N, D]`.

    If features are compared on a share of the images only, the other images have no tokens.

    Attributes:
        positions: `N`.
        width: `D`.
        classes: `K`, 0 without a head.
        dtype: The run's autocast type: outputs are returned in it, and logits are stored in it.
        cache_format: Tokens as `bf16`, or as `int8` with one float32 scale per token.
        share: The images that have tokens.
    """

    positions: int
    width: int
    classes: int
    dtype: torch.dtype
    cache_format: str
    share: FeatureShare = ALL

    @property
    def exact(self) -> bool:
        """Whether the outputs read are bitwise equal to those of the live teacher."""
        return self.cache_format == "bf16" and self.dtype == torch.bfloat16

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's tensors on average, without the file's header (under 1 kB per file)."""
        token = 2 * self.width if self.cache_format == "bf16" else self.width + 4
        return round(self.share.share * self.positions * token) + self.classes * self.dtype.itemsize

    @property
    def images_per_shard(self) -> int:
        """Images per file, for files of up to about 64 MiB."""
        images = max(1, SHARD_BYTES // self.bytes_per_image)
        return images // _MULTIPLE * _MULTIPLE or images

    def holds(self, image: int, view: int) -> bool:
        """Whether anything is stored for an image in a view: logits or tokens."""
        return self.classes > 0 or bool(self.share.chosen(image, view))

    def stored(self, view: int, first: int, images: int) -> int:
        """Return how many of a view's images `first` to `first + images - 1` have stored outputs."""
        return images if self.classes else self.token_row(first + images, view, first)

    def token_row(self, image: int, view: int, first: int) -> int:
        """Return the row of an image's tokens in a file whose first image is `first`."""
        return self.share.chosen_before(image, view) - self.share.chosen_before(first, view)

    def shapes(self, view: int, first: int, images: int) -> dict[str, list[int]]:
        """Return the shapes of the tensors in a file with a view's images `first` to `first + images - 1`."""
        with_tokens = self.token_row(first + images, view, first)
        shapes = {"tokens": [with_tokens, self.positions, self.width]}
        if self.cache_format == "int8":
            shapes["scale"] = [with_tokens, self.positions]
        if self.classes:
            shapes["logits"] = [images, self.classes]
        return shapes

    def encode(self, outputs: TeacherOutputs, rows: Sequence[int]) -> dict[str, Tensor]:
        """Convert a batch's outputs to the tensors that are stored.

        Args:
            outputs: The teacher's outputs for the batch.
            rows: The images of the batch that have tokens.
        """
        kept = {} if outputs.logits is None else {"logits": outputs.logits.cpu()}
        tokens = outputs.tokens if len(rows) == len(outputs.tokens) else outputs.tokens[list(rows)]
        if self.cache_format == "bf16":
            return kept | {"tokens": tokens.to("cpu", torch.bfloat16)}
        tokens = tokens.float()
        scale = tokens.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return kept | {"tokens": (tokens / scale[..., None]).round().to("cpu", torch.int8), "scale": scale.cpu()}

    def decode(self, kept: Mapping[str, Tensor], row: int, token_row: int | None) -> CachedOutputs:
        """Convert the stored tensors of an image back to teacher outputs in `dtype`; the inverse of `encode`.

        Args:
            kept: The tensors of a file or a batch.
            row: The image's row in the logits.
            token_row: Its row in the tokens; None if it has none.
        """
        logits = kept["logits"][row] if "logits" in kept else None
        if token_row is None:
            return CachedOutputs(None, logits)
        tokens = kept["tokens"][token_row]
        if self.cache_format == "int8":
            tokens = tokens.float() * kept["scale"][token_row, ..., None]
        return CachedOutputs(tokens.to(self.dtype), logits)
