"""Cache of teacher outputs on disk, which a run reads instead of running the teacher."""

from scalekd.data.cache.fill import fill
from scalekd.data.cache.identity import Identity, check_shards, list_images, open_cache
from scalekd.data.cache.layout import Layout
from scalekd.data.cache.reader import CacheReader
from scalekd.data.cache.store import TeacherCache

__all__ = [
    "CacheReader",
    "Identity",
    "Layout",
    "TeacherCache",
    "check_shards",
    "fill",
    "list_images",
    "open_cache",
]
