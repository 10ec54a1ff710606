"""Identity of a cache: the settings and images that its contents depend on, hashed into the cache's name."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalekd.data.cache.layout import Layout
from scalekd.data.cache.store import DESCRIPTION, LISTING, TeacherCache
from scalekd.data.split import Split, Store
from scalekd.errors import UserError

_FORMAT = 1
SHARE = "feature_share"  # the part of the images that have tokens, as a setting
_IF_ABSENT = {SHARE: 1.0}  # settings that a description lacks if they have this value


def list_images(split: Split) -> str:
    """List the images in order, one per line: size in bytes (0 if it cannot be read), a tab, the relative path."""
    names = (name.replace("\n", r"\n") for name in split.store.names)
    return "".join(f"{_size(split.store, index)}\t{name}\n" for index, name in enumerate(names))


def _size(store: Store, index: int) -> int:
    try:
        return store.size(index)
    except OSError:
        return 0


@dataclass(frozen=True)
class Identity:
    """Everything that the cached outputs depend on.

    Attributes:
        settings: Teacher, augmentation, seed, number format: plain values by name.
        listing: The images, see `list_images`.
        ingredients: The settings and the hash of the listing, as stored in `cache.json`.
        digest: A hash of the ingredients; the name of the cache's folder.
    """

    settings: dict[str, Any]
    listing: str
    ingredients: dict[str, Any] = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        images = hashlib.sha256(self.listing.encode(errors="surrogateescape")).hexdigest()
        ingredients = json.loads(json.dumps({"format": _FORMAT, "images": images} | self.settings))
        text = json.dumps(ingredients, sort_keys=True)
        object.__setattr__(self, "ingredients", ingredients)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest()[:16])

    def cache(self, caches: Path, layout: Layout) -> TeacherCache:
        """Return this identity's cache in the folder `caches`; it need not exist."""
        return TeacherCache(caches / self.digest, self.listing.count("\n"), layout)


def open_cache(caches: Path, identity: Identity, layout: Layout, views: int) -> TeacherCache:
    """Open the cache that a run reads.

    Raises:
        UserError: If there is no cache for this run (the message says what differs from the nearest one), it is
            incomplete, or a shard is damaged (the message names it).
    """
    cache = identity.cache(caches, layout)
    if not cache.exists:
        raise UserError(f"cache: {_nearest(caches, identity)}")
    check_shards(cache, views)
    missing = cache.missing(views)
    if missing:
        complete = missing[0].view
        alternative = f", or set augmentation_epochs to {complete}" if complete else ""
        every = len(cache.shards(views))
        raise UserError(
            f"cache: {cache.path} holds {every - len(missing)} of {every} shards for {views} view(s); "
            f"run `scalekd cache` with the same flags to continue{alternative}"
        )
    return cache


def check_shards(cache: TeacherCache, views: int) -> None:
    """Check that existing shards are complete and belong to this cache.

    Raises:
        UserError: If one does not; names it.
    """
    for shard, fault in cache.faulty(views).items():
        raise UserError(
            f"cache: {cache.file(shard)} {fault}; run `scalekd cache --rebuild` with the same flags to write it again"
        )


def _nearest(caches: Path, identity: Identity) -> str:
    """Describe how the nearest existing cache differs from the one that is needed."""
    fix = "fill one with `scalekd cache` and the same flags"
    found: list[tuple[list[str], Path, dict[str, Any]]] = []
    ours = _IF_ABSENT | identity.ingredients
    for description in sorted(caches.glob(f"*/{DESCRIPTION}")):
        try:
            theirs = _IF_ABSENT | dict(json.loads(description.read_text(encoding="utf-8"))["ingredients"])
        except (OSError, ValueError, TypeError, KeyError):  # not a description of a cache
            continue
        keys = sorted(ours.keys() | theirs.keys())
        found.append(([k for k in keys if theirs.get(k) != ours.get(k)], description.parent, theirs))
    if not found:
        return f"{caches} holds no cache; {fix}"
    differing, path, theirs = min(found, key=lambda entry: len(entry[0]))
    parts = [
        _compare_images(path, identity.listing)
        if key == "images"
        else f"{key} {_value(key, theirs.get(key))} (run: {_value(key, ours.get(key))})"
        for key in differing
    ]
    return f"{caches} holds no cache for this run; the nearest, {path.name}, has {', '.join(parts)}; {fix}"


def _value(key: str, value: Any) -> str:
    return "0.0, that is, logits only" if key == SHARE and value == 0 else _brief(value)


def _brief(value: Any) -> str:
    """Format a value for a message; hashes are shortened."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def _compare_images(path: Path, now: str) -> str:
    """Describe how the current images differ from those of a cache."""
    try:
        then = gzip.decompress((path / LISTING).read_bytes()).decode(errors="surrogateescape")
    except (OSError, EOFError) as error:
        return f"other images ({LISTING}: {error})"
    old, new = _sizes(then), _sizes(now)
    changes = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "with another size": [name for name in new if name in old and old[name] != new[name]],
    }
    parts = [f"{len(names)} {change} (first: {names[0]})" for change, names in changes.items() if names]
    return f"other images than now: {', '.join(parts) or 'the same in another order'}"


def _sizes(listing: str) -> dict[str, str]:
    """Parse a listing into the size of each file."""
    entries = [line.partition("\t") for line in listing.split("\n")[:-1]]
    return {name: size for size, _, name in entries}
