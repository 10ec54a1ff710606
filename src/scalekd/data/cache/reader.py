"""Read a cache, one image at a time."""

from __future__ import annotations

from typing import Any

from safetensors import safe_open
from torch import Tensor

from scalekd.data.cache.store import Shard, TeacherCache
from scalekd.data.loader import Key
from scalekd.methods.outputs import TeacherOutputs


class CacheReader:
    """Map a sample's key to its cached outputs; the shards must exist.

    Files are memory-mapped, those of one view at a time. A reader can be pickled; each process then opens the files
    itself.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache
        self._view = -1
        self._shards: list[Shard] = []
        self._open: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache, "_view": -1, "_shards": [], "_open": {}}

    def __call__(self, key: Key) -> TeacherOutputs:
        """Return the outputs for one image, without a batch axis: tokens `[N, D]`, logits `[K]`."""
        if key.epoch != self._view:
            self._view, self._open = key.epoch, {}
            self._shards = [s for s in self._cache.shards(key.epoch + 1) if s.view == key.epoch]
        number, row = divmod(key.image, self._cache.layout.images_per_shard)
        if number not in self._open:
            with safe_open(self._cache.file(self._shards[number]), framework="pt") as file:
                self._open[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return self._cache.layout.decode({name: tensor[row] for name, tensor in self._open[number].items()})
