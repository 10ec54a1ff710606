from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from scalekd.data.names import Names

# File names that Linux allows: any bytes except 0 and "/".
NAMES = st.lists(st.binary(max_size=12).map(lambda raw: raw.decode(errors="surrogateescape")), max_size=9)


@given(names=NAMES)
def test_packed_names_are_the_names(names: list[str]) -> None:
    packed = Names.pack(iter(names))
    assert len(packed) == len(names)
    assert list(packed) == [packed[index] for index in range(len(names))] == names
    assert [packed[index - len(names)] for index in range(len(names))] == names
    assert list(pickle.loads(pickle.dumps(packed))) == names


@given(
    names=NAMES,
    cut=st.builds(slice, *(st.none() | st.integers(-12, 12) for _ in range(2)), st.sampled_from([None, 1, 2, -1])),
)
def test_a_slice_of_names_is_that_of_a_list(names: list[str], cut: slice) -> None:
    assert list(Names.pack(names)[cut]) == names[cut]


def test_a_million_names_take_what_their_letters_take() -> None:
    packed = Names.pack(f"{number:07}" for number in range(200_000))
    assert packed.text.nbytes + packed.bounds.nbytes == 200_000 * (7 + 8) + 8
    assert packed[199_999] == "0199999"
    assert list(packed)[65_535:65_538] == ["0065535", "0065536", "0065537"]
