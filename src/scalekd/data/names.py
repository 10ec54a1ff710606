"""Store many strings in two arrays, which processes can share and files can hold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 65536


class Names(Sequence[str]):
    """A sequence of strings without a Python object for each: memory is little more than the characters themselves.

    Args:
        text: All strings concatenated, in UTF-8; invalid bytes are kept as they are (`surrogateescape`).
        bounds: `[n + 1]`, the offset in `text` where each string begins, and where the last one ends.
    """

    def __init__(self, text: NDArray[np.uint8], bounds: NDArray[np.int64]) -> None:
        self.text, self.bounds = text, bounds

    @classmethod
    def pack(cls, names: Iterable[str]) -> Names:
        """Pack strings, iterating over them once."""
        text, bounds = bytearray(), array("q", [0])
        for name in names:
            text += name.encode(errors="surrogateescape")
            bounds.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(bounds, np.int64))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Names: ...

    def __getitem__(self, index: int | slice) -> str | Names:
        every = range(len(self))[index]
        if isinstance(every, int):
            begin, end = self.bounds[every : every + 2]
            return self.text[begin:end].tobytes().decode(errors="surrogateescape")
        if every.step == 1:
            return Names(self.text, self.bounds[every.start : max(every.start, every.stop) + 1])
        return Names.pack(self[one] for one in every)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            bounds = self.bounds[first : first + _AT_ONCE + 1].tolist()
            text = self.text[bounds[0] : bounds[-1]].tobytes()
            for begin, end in pairwise(bounds):
                yield text[begin - bounds[0] : end - bounds[0]].decode(errors="surrogateescape")
