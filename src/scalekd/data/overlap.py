"""Images that two splits share: accuracy on what was trained on says nothing of other images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from scalekd.data.sources.joined import Joined
from scalekd.data.sources.shards import Shards
from scalekd.data.split import Files, Split, Store
from scalekd.errors import UserError

_LINKS_UP_TO = 200_000  # images of a split whose folders are searched for links to files


def shared_images(one: Split, other: Split) -> list[tuple[int, int]]:
    """The images that both splits hold, as their index in one and in the other.

    Images are told apart by where they are: the real path of a file (links are followed, but for links to single files
    in splits of more than 200,000 images), the place in a shard, the row of a table. Copies of a file are different
    images here; `scalekd data check` compares the bytes.
    """
    known = {place: index for index, place in enumerate(_places(one.store))}
    return [(known[place], index) for index, place in enumerate(_places(other.store)) if place in known]


def refuse_shared(training: Split, validation: Split, names: tuple[str, str]) -> None:
    """Make sure that no validation image is trained on.

    Args:
        training: The training images.
        validation: The validation images; there may be none.
        names: What the two splits are called.

    Raises:
        UserError: If one is; names it.
    """
    pairs = shared_images(validation, training) if len(validation) else []
    if pairs:
        first, many = validation.locate(pairs[0][0]), len({index for index, _ in pairs})
        raise UserError(
            f"data: {many} of {len(validation)} images of the validation split {names[1]!r} are in the training split "
            f"{names[0]!r}, too, such as {first}: accuracy on them would say nothing of new images. Take images out of "
            "the training split for validation (a tenth of each class, say)"
        )


def shared_files(training: Iterable[Path], validation: Iterable[Path]) -> list[Path]:
    """The validation files that are training files too; links are followed."""
    known = {os.path.realpath(path) for path in training}
    return [path for path in validation if os.path.realpath(path) in known]


def _places(store: Store) -> Iterator[str]:
    """Where each image really is."""
    if isinstance(store, Joined):
        yield from _places(store.first)
        yield from _places(store.second)
    elif isinstance(store, Files):
        yield from _files(store)
    elif isinstance(store, Shards):
        shards = [os.path.realpath(file) for file in store.files]
        for shard, offset in zip(store.shard.tolist(), store.offsets.tolist(), strict=True):
            yield f"{shards[shard]}:{offset}"
    else:
        yield from map(store.locate, range(len(store.names)))


def _files(store: Files) -> Iterator[str]:
    """The real path of each file; each folder is asked once."""
    folders: dict[str, tuple[str, set[str]]] = {}
    with_links = len(store.names) <= _LINKS_UP_TO
    for name in store.names:
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            real = os.path.realpath(store.root / folder)
            folders[folder] = real, _links(Path(real)) if with_links else set()
        real, links = folders[folder]
        path = os.path.join(real, file)
        yield os.path.realpath(path) if file in links else path


def _links(folder: Path) -> set[str]:
    """The names of the links in a folder; of one that is gone none, which whoever reads its images will tell."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()
