"""Fill a cache of teacher outputs; several processes may do so concurrently."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.utils.data import Sampler

from scalekd.data.cache.layout import Layout
from scalekd.data.cache.store import Shard, TeacherCache, size
from scalekd.data.corrupt import CorruptImages
from scalekd.data.loader import Batch, Key, ReplayDataset, training_loader
from scalekd.errors import UserError
from scalekd.methods.outputs import TeacherOutputs

_DRAWN_TWICE = 64  # images that are augmented twice to check that the augmentation is reproducible


def fill(
    cache: TeacherCache,
    dataset: ReplayDataset,
    teach: Callable[[Tensor], TeacherOutputs],
    *,
    views: int,
    batch: int,
    workers: int,
    corrupt: CorruptImages,
    progress: Callable[[int, int], object],
) -> None:
    """Write the missing shards, and wait for shards that another process is writing.

    Args:
        cache: The cache; its folder must exist.
        dataset: The images as they are trained on.
        teach: The teacher: images `[batch, 3, h, w]` -> outputs. Every call gets a full batch (the last one is padded),
            so that the batch size cannot change the outputs, not even in the last bit.
        views: Number of views to write.
        batch: Images per call of the teacher.
        workers: Processes that load images.
        corrupt: Counter of unreadable images.
        progress: Called with the number of images this process has computed since the last call, and the number
            still missing.

    Raises:
        UserError: If the augmentation cannot be replayed, the disk is full, or too many images are unreadable.
    """
    check_replayable(dataset, views)
    while missing := cache.missing(views):
        claims = _Claims(cache, views, batch)
        try:
            _fill_free(claims, training_loader(dataset, claims, workers, corrupt.report), teach, corrupt, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            missing_bytes, free = cache.bytes_missing(views), cache.bytes_free()
            more = f"{size(missing_bytes - free)} more are needed"
            if missing_bytes <= free:
                more = f"or its quota is used up; {size(missing_bytes)} are still missing"
            raise UserError(
                f"cache: the disk of {cache.path.parent} is full; {more}. Written shards are kept: free space, then "
                "run `scalekd cache` with the same flags to continue"
            ) from error
        finally:
            claims.release()
        if not claims.made:
            with cache.claim(missing[0], wait=True):  # other processes hold all missing shards: wait for one of them
                progress(0, claims.images_missing())


class _Claims(Sampler[list[Key]]):
    """Batches of all missing shards that no other process is writing.

    Each shard is claimed when its first batch is loaded.
    """

    def __init__(self, cache: TeacherCache, views: int, batch: int) -> None:
        self.cache, self.views, self.batch = cache, views, batch
        # Claimed shards, oldest first, each with its claim and the number of images to compute for it.
        self.held: deque[tuple[Shard, ExitStack, int]] = deque()
        self.given: deque[list[Key]] = deque()  # batches handed to the loader and not received from it yet
        self.made = 0

    def __iter__(self) -> Iterator[list[Key]]:
        for shard in self.cache.missing(self.views):
            claim = ExitStack()
            if not claim.enter_context(self.cache.claim(shard)):
                claim.close()
                continue
            keys = [Key(shard.view, shard.first + offset) for offset in range(shard.images)]
            # A shard in which no image has outputs must be written too, so one of its images is computed.
            keys = [key for key in keys if self.cache.layout.holds(key.image, key.epoch)] or keys[:1]
            self.held.append((shard, claim, len(keys)))
            for first in range(0, len(keys), self.batch):
                self.given.append(keys[first : first + self.batch])
                yield self.given[-1]

    @property
    def images_of_first(self) -> int:
        """Number of images to compute for the shard that was claimed first."""
        return self.held[0][2]

    def images_missing(self) -> int:
        """Count the images to compute for all shards that do not exist yet, whichever process is writing them."""
        layout = self.cache.layout
        return sum(layout.stored(shard.view, shard.first, shard.images) for shard in self.cache.missing(self.views))

    def write(self, outputs: list[dict[str, Tensor]]) -> None:
        """Write the shard that was claimed first, and release its claim."""
        shard, claim, _ = self.held[0]
        tensors = {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}
        self.cache.write(shard, tensors)
        self.held.popleft()
        claim.close()
        self.made += 1

    def release(self) -> None:
        """Release all claims that are still held."""
        while self.held:
            self.held.popleft()[1].close()


def _fill_free(
    claims: _Claims,
    loader: Iterable[Batch],
    teach: Callable[[Tensor], TeacherOutputs],
    corrupt: CorruptImages,
    progress: Callable[[int, int], object],
) -> None:
    """Write all missing shards that no other process has claimed."""
    outputs: list[dict[str, Tensor]] = []
    images = 0
    missing = claims.images_missing()
    layout = claims.cache.layout
    for loaded in loader:
        corrupt.add(loaded.corrupt)
        count = len(loaded.images)
        padding = loaded.images[-1:].expand(claims.batch - count, -1, -1, -1)
        tokens, logits = teach(torch.cat([loaded.images, padding]))
        computed = TeacherOutputs(tokens[:count], None if logits is None else logits[:count])
        outputs.append(layout.encode(computed, _rows_with_tokens(layout, claims.given.popleft())))
        images += count
        missing -= count
        if images == claims.images_of_first:
            claims.write(outputs)
            outputs, images = [], 0
        progress(count, missing)


def _rows_with_tokens(layout: Layout, keys: list[Key]) -> list[int]:
    """Return the rows of a batch whose images have tokens in the cache."""
    return [row for row, key in enumerate(keys) if layout.share.chosen(key.image, key.epoch)]


def check_replayable(dataset: ReplayDataset, views: int) -> None:
    """Check on a few images that the same key always gives the same image.

    Raises:
        UserError: If it does not; the message gives the likely cause.
    """
    count = min(_DRAWN_TWICE, len(dataset))
    keys = [Key(number % views, number * len(dataset) // count) for number in range(count)]
    first = [dataset[key].image for key in keys]
    again = [dataset[key].image for key in reversed(keys)][::-1]
    for key, one, two in zip(keys, first, again, strict=True):
        if one is not None and (two is None or not torch.equal(one, two)):
            raise UserError(
                f"cache: the augmentation of {dataset.split.locate(key.image)} gave two different images for the same "
                "seed, so it cannot be replayed; use the global random generators of python, numpy or torch, which are "
                "seeded for each image, instead of a private generator"
            )
