"""What must be kept apart: the images of two splits, and a command's output from the images that are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from scalekd.data.hold_out import Selected
from scalekd.data.sources.joined import Joined
from scalekd.data.sources.shards import Shards
from scalekd.data.split import Files, Split, Store
from scalekd.errors import UserError

_LINKS_UP_TO = 200_000  # images of a split whose folders are searched for links to files


def shared_images(one: Split, other: Split) -> list[tuple[int, int]]:
    """Return the images that are in both splits, as pairs of their indices in `one` and `other`.

    Images are compared by location: the real path of a file, the position in a shard, the row of a table. Links are
    followed, except links to single files in splits of more than 200,000 images. Copies of a file count as different
    images here; `scalekd data check` compares the bytes.
    """
    known = {place: index for index, place in enumerate(_places(one.store))}
    return [(known[place], index) for index, place in enumerate(_places(other.store)) if place in known]


def refuse_shared(training: Split, validation: Split, names: tuple[str, str]) -> None:
    """Check that no validation image is also a training image.

    Args:
        training: The training images.
        validation: The validation images; may be empty.
        names: The names of the two splits.

    Raises:
        UserError: If one is; names it.
    """
    pairs = shared_images(validation, training) if len(validation) else []
    if pairs:
        first, many = validation.locate(pairs[0][0]), len({index for index, _ in pairs})
        raise UserError(
            f"data: {many} of {len(validation)} images of the validation split {names[1]!r} are in the training split "
            f"{names[0]!r}, too, such as {first}: accuracy on them would say nothing about new images. Move images "
            "from the training split to the validation split (for example a tenth of each class)"
        )


def shared_files(training: Iterable[Path], validation: Iterable[Path]) -> list[Path]:
    """Return the validation files that are also training files; links are followed."""
    known = {os.path.realpath(path) for path in training}
    return [path for path in validation if os.path.realpath(path) in known]


def refuse_output_among_images(output: Path, folders: Iterable[Path], key: str = "output") -> None:
    """Check that the folder a command writes is not inside a folder whose images are read.

    Args:
        output: The folder to be written; it need not exist.
        folders: Folders that are searched for images; they need not exist.
        key: The key that sets `output`, for the error.

    Raises:
        UserError: If it is inside one of them.
    """
    for folder in folders:
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{key}: {output} is in {folder}, whose folders are read as images; use a folder elsewhere, "
                f"such as runs/{output.name}"
            )


def _places(store: Store) -> Iterator[str]:
    """Yield the real location of each image."""
    if isinstance(store, Joined):
        yield from _places(store.first)
        yield from _places(store.second)
    elif isinstance(store, Files):
        yield from _files(store)
    elif isinstance(store, Selected):
        inner = list(_places(store.store))
        yield from (inner[index] for index in store.indices.tolist())
    elif isinstance(store, Shards):
        shards = [os.path.realpath(file) for file in store.files]
        for shard, offset in zip(store.shard.tolist(), store.offsets.tolist(), strict=True):
            yield f"{shards[shard]}:{offset}"
    else:
        yield from map(store.locate, range(len(store.names)))


def _files(store: Files) -> Iterator[str]:
    """Yield the real path of each file; each folder is resolved once."""
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
    """Return the names of the links in a folder; none if it cannot be listed, which reading its images will report."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()
