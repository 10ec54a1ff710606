"""Counts the values and classes in a split's label images before training or measuring, to refuse wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from scalekd.data.decoding import UnreadableImageError
from scalekd.data.outages import OutageRetry
from scalekd.errors import UserError
from scalekd.progress import watched
from scalekd.tasks.segmentation.files import Pairs
from scalekd.tasks.segmentation.schema import IGNORED, Segmentation, colour_in_words
from scalekd.tasks.segmentation.suggestions import suggest_flags
from scalekd.tasks.segmentation.values import Coding, read_values

SAMPLE = 500  # label images counted first; the rest is counted only if a class is missing in them
_SHOWN = 6  # values listed in a message


@dataclass
class Count:
    """Counts of the values in label images, with the pixels and files of each.

    Attributes:
        of: Number of label images in the split.
        files: Number of label images counted.
        pixels: Number of pixels of each value.
        images: Number of label images that contain each value.
        example: A label image that contains each value.
        coloured: Files whose values are colours, `0xRRGGBB`.
        numbered: All other files.
        palette: Colour of each value and the file whose palette defines it, for label images with a palette.
        unreadable: Reasons why files could not be read.
    """

    of: int
    files: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    example: dict[int, Path] = field(default_factory=dict)
    coloured: list[Path] = field(default_factory=list)
    numbered: list[Path] = field(default_factory=list)
    palette: dict[int, tuple[tuple[int, ...], Path]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def extent(self) -> str:
        """A text that says how many label images were counted."""
        return f"all {self.of} label images" if self.files == self.of else f"{self.files} of {self.of} label images"

    def describe(self) -> str:
        """Describe the most frequent values with their pixels and files."""
        words = colour_in_words if self.coloured else str
        most = sorted(self.pixels, key=lambda value: -self.pixels[value])
        shown = [f"{words(v)} ({self.pixels[v]:,} pixels in {self.images[v]} files)" for v in sorted(most[:_SHOWN])]
        more = [f"{len(most) - _SHOWN} more"] if len(most) > _SHOWN else []
        return ", ".join([*shown, *more])

    def add(self, path: Path, max_pixels: int, *, as_colours: bool, mapped: Container[int]) -> None:
        """Count the values of one label image.

        Args:
            path: The file.
            max_pixels: Images with more pixels count as unreadable.
            as_colours: Whether to read colours; see `read_values`.
            mapped: Values that `map_values` maps; their palette colours may differ between files.

        Raises:
            UnreadableImageError: If it is missing or corrupt.
            UserError: If it cannot be a label image, or its palette contradicts another file's.
        """
        values, coloured, palette = read_values(path, max_pixels, as_colours=as_colours)
        numbers, counts = np.unique(values, return_counts=True)
        for value, pixels in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.pixels[value] = self.pixels.get(value, 0) + pixels
            self.images[value] = self.images.get(value, 0) + 1
            self.example.setdefault(value, path)
        self.files += 1
        (self.coloured if coloured else self.numbered).append(path)
        if palette is not None and not as_colours:
            self._compare_palette(path, palette, [value for value in numbers.tolist() if value not in mapped])

    def _compare_palette(self, path: Path, own: list[int], values: list[int]) -> None:
        """Refuse label images whose palettes give one value different colours: each file has its own numbering."""
        for value in values:
            colour = tuple(own[3 * value : 3 * value + 3])
            other, where = self.palette.setdefault(value, (colour, path))
            if other != colour:
                one, two = (colour_in_words(int.from_bytes(bytes(c))) for c in (other, colour))
                raise UserError(
                    f"data: value {value} is {one} in the palette of label image {where} and {two} in that of {path}, "
                    f"so it is not one class; map the colours to numbers, as in --map-values '{one}=1,...', or pass "
                    f"--map-values {value}={value} if the values are right and the palettes are wrong"
                )


def check_labels(
    pairs: Pairs, recipe: Segmentation, say: Callable[[str], object], console: Console, *, fewest: int = 2
) -> None:
    """Count the labelled pixels of each class and report them; warn about classes that never occur.

    An evenly spread sample of label images is counted; all are counted if a class is missing in the sample.

    Args:
        pairs: The files of a split.
        recipe: The run's settings.
        say: Prints a line.
        console: Where to show the progress bar.
        fewest: Number of classes that must occur. Measuring needs one, training two.

    Raises:
        UserError: If a value stands for no class, or fewer than `fewest` classes occur; names the values and the flags
            that may help.
    """
    coding = Coding(recipe)
    count = _counted(pairs, recipe, coding, console, as_colours=coding.as_colours)
    if count.coloured and not coding.as_colours:
        everything = _counted(pairs, recipe, coding, console, as_colours=True)
        everything.coloured = count.coloured  # files with only grey colours hold numbers
        count = everything
    _refuse(count, coding, recipe, pairs, fewest)
    _announce(count, coding, recipe, pairs, say)


def _counted(pairs: Pairs, recipe: Segmentation, coding: Coding, console: Console, *, as_colours: bool) -> Count:
    count, order = Count(len(pairs)), _spread(pairs.labels)
    patience = OutageRetry(recipe.data_patience)
    for part in (order[:SAMPLE], order[SAMPLE:]):
        for path in watched(part, f"count {pairs.split} labels", console):
            try:
                patience.read(
                    pairs.root,
                    partial(count.add, path, recipe.max_pixels, as_colours=as_colours, mapped=coding.mapping),
                )
            except UnreadableImageError as error:
                count.unreadable.append(f"{path}: {error}")
        if len(_classes(count, coding)) == len(coding.names) or (count.coloured and not coding.as_colours):
            break
    return count


def _spread(paths: tuple[Path, ...]) -> list[Path]:
    """Return all paths, starting with `SAMPLE` evenly spread ones."""
    first = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).round().astype(int))
    rest = np.setdiff1d(np.arange(len(paths)), first)
    return [paths[index] for index in (*first, *rest)]


def _classes(count: Count, coding: Coding) -> dict[int, int]:
    """Return the number of labelled pixels of each class that occurs."""
    pixels: dict[int, int] = {}
    for value, number in count.pixels.items():
        index = coding.index(value)
        if index is not None and index != IGNORED:
            pixels[index] = pixels.get(index, 0) + number
    return pixels


def _refuse(count: Count, coding: Coding, recipe: Segmentation, pairs: Pairs, fewest: int) -> None:
    if not count.files:
        raise UserError(f"data: no label image of {pairs.split} can be read; {count.unreadable[0]}")
    what = f"values in {count.extent} of {pairs.split}: {count.describe()}"
    how = suggest_flags(set(count.pixels), recipe, coloured=bool(count.coloured))
    unknown = [value for value in count.pixels if coding.index(value) is None]
    if count.coloured and not coding.as_colours:
        raise UserError(f"{coding.refusal(count.coloured[0], 0, True)}; {what}; {how}")
    if coding.as_colours and count.numbered:
        raise UserError(f"{coding.refusal(count.numbered[0], 0, False)}; {what}; {how}")
    if unknown:
        value = max(unknown)
        raise UserError(f"{coding.refusal(count.example[value], value, coding.as_colours)}; {what}; {how}")
    found = _classes(count, coding)
    if len(found) < fewest:
        only = f"only {coding.names[next(iter(found))]!r} occurs" if found else "no pixel has a class"
        unlabelled = [
            colour_in_words(v) if count.coloured else str(v) for v in sorted(count.pixels) if coding.index(v) == IGNORED
        ]
        rule = (
            f"; {' and '.join(unlabelled[:_SHOWN])} {'counts' if len(unlabelled) == 1 else 'count'} as unlabelled"
            if unlabelled
            else ""
        )
        raise UserError(f"data: {only} in the labels of {pairs.split}: at least {fewest} must; {what}{rule}; {how}")


def _announce(count: Count, coding: Coding, recipe: Segmentation, pairs: Pairs, say: Callable[[str], object]) -> None:
    found = _classes(count, coding)
    labelled, total = sum(found.values()), sum(count.pixels.values())
    say(
        f"labels    {pairs.split}: {len(found)} of {len(coding.names)} classes, {100 * labelled / total:.1f}% of the "
        f"pixels labelled ({count.extent} counted)"
    )
    missing = [name for index, name in enumerate(coding.names) if index not in found]
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        how = suggest_flags(set(count.pixels), recipe, coloured=bool(count.coloured), surely=False)
        say(
            f"warning: no pixel of {pairs.split} is labelled {named} ({count.extent} counted; values: "
            f"{count.describe()}){f'; {how}' if how else ''}"
        )
