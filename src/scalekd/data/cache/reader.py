"""Read a cache, one image at a time."""

from __future__ import annotations

from typing import Any

from safetensors import safe_open
from torch import Tensor

from scalekd.data.cache.store import Shard, TeacherCache
from scalekd.data.loader import CachedOutputs, Key
from scalekd.methods.share import FeatureShare


class CacheReader:
    """Map a sample's key to its cached outputs; the shards must exist.

    Files are memory-mapped, those of one view at a time. A reader can be pickled; each process then opens the files
    itself.

    Args:
        cache: The cache.
        share: The images whose tokens are read; the cache must hold them.
    """

    def __init__(self, cache: TeacherCache, share: FeatureShare) -> None:
        self._cache, self._share = cache, share
        self._view = -1
        self._shards: list[Shard] = []
        self._open: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache, "_share": self._share, "_view": -1, "_shards": [], "_open": {}}

    def __call__(self, key: Key) -> CachedOutputs:
        """Return the outputs for one image."""
        if key.epoch != self._view:
            self._view, self._open = key.epoch, {}
            self._shards = [s for s in self._cache.shards(key.epoch + 1) if s.view == key.epoch]
        layout = self._cache.layout
        number, row = divmod(key.image, layout.images_per_shard)
        if number not in self._open:
            with safe_open(self._cache.file(self._shards[number]), framework="pt") as file:
                self._open[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        chosen = self._share.chosen(key.image, key.epoch)
        token_row = layout.token_row(key.image, key.epoch, key.image - row) if chosen else None
        return layout.decode(self._open[number], row, token_row)
