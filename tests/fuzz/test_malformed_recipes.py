"""2,000 malformed recipes: each is refused in one line that can be printed, none is executed, none takes long."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from scalekd.errors import UserError
from scalekd.recipes import Recipe, dump, load

KEYS = (*Recipe.model_fields, "base", "leraning_rate", "", "\n", "x" * 300, 1, None, True, 0.5, math.nan)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\n", "\t", "none", "nan", "1e400", "²", "\ud800", "\u202e", "\x1b[31m", "a" * 10_000]),
    st.binary(max_size=4),
    st.dates(),
    st.datetimes(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(SCALARS, inner, max_size=3)),
    max_leaves=8,
)
# Texts that mean something to YAML's scanner, its constructors or to us; none may be run, followed or expanded.
FRAGMENTS = st.sampled_from(
    [
        *(b"\xff", b"\xc3\x28", b"\0", b"\t", b"\r", b"\x1b[2J", b"\xef\xbb\xbf", "\u2028\u202e\x85".encode()),
        *(b"!!python/object/apply:os._exit [1]", b"!!python/name:os.system", b"!!python/module:this"),
        *(b"!!int x", b"!!bool x", b"!!float x", b"!!timestamp x", b"!!binary x", b"!!set {a}", b"!!omap [a]", b"!x y"),
        *(b"2024-99-99", b"9" * 5000, b"0x", b".inf", b".nan", b"-.inf", b"1e400", b"60:60", b"0o9"),
        *(b"&a [*a]", b"&a {<<: *a}", b"*nobody", b"&a x\nviews: [*a, *a]", b"<<: [1]", b"? [1]\n: 2", b"=: 1"),
        *(
            b"[" * 500,
            b"{a: " * 500,
            b"- " * 300,
            b"!" * 99,
            b"---\n",
            b"...\n",
            b"%YAML 9.9\n",
            b"|",
            b">",
            b"'",
            b'"',
        ),
        *(
            b"\nlr: 1\nlr: 2\n",
            b"\nbase: recipe.yaml\n",
            b"\nbase: ../fuzz/recipe.yaml\n",
            b"\nbase: .\n",
            b"base: fifo.yaml",
        ),
        *(
            b"\nbase: [imagenette]\n",
            b"\nbase: " + b"a" * 5000 + b".yaml\n",
            b"\nbase: loop.yaml\n",
            b"# " + b"x" * 70_000,
        ),
    ]
)
PAIRS = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3)
PLAIN = b"base: imagenette\nlr: 0.001\nviews: [spatial, frequency]\nstudent_args: {depth: 4}\n"


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A recipe with values that are none, with bytes that are no YAML, or both."""
    text = yaml.safe_dump(draw(PAIRS)).encode() if draw(st.booleans()) else PLAIN
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(FRAGMENTS) + text[place + draw(st.integers(0, 3)) :]
    return text


def check_line(error: Exception) -> None:
    line = str(error)
    assert line.isprintable(), line
    assert 0 < len(line) < 2100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes are, beside things that are none."""
    path = tmp_path_factory.mktemp("recipes") / "fuzz"
    path.mkdir()
    os.mkfifo(path / "fifo.yaml")
    (path / "loop.yaml").symlink_to("loop.yaml")
    (path / "folder.yaml").mkdir()
    return path


@settings(max_examples=2000, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(text=texts())
def test_a_malformed_recipe_is_refused_in_one_line(folder: Path, text: bytes) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(text)
    try:
        accepted = load(recipe, {})
    except UserError as error:
        check_line(error)
        return
    recipe.write_text(dump(accepted))
    assert load(recipe, {}) == accepted, "what is accepted can be kept and read again"
    reject()  # not malformed: does not count


@settings(max_examples=500)
@given(key=st.sampled_from(list(Recipe.model_fields)), value=VALUES)
def test_a_value_that_is_none_is_refused_for_every_key(key: str, value: Any) -> None:
    try:
        load({key: value}, {})
        load("imagenette", {key: value})
    except UserError as error:
        check_line(error)


@pytest.mark.parametrize(
    "name", ["fifo.yaml", "loop.yaml", "folder.yaml", "x" * 300 + ".yaml", "a\nb.yaml", "a\0b.yaml"]
)
def test_a_recipe_that_is_no_file_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file") as refused:
        load(folder / name, {})
    check_line(refused.value)


MALFORMED = [
    b"lr: \xff", b"lr: \0", b"lr: 1\n\tclip: 1", b"lr: !!python/object/apply:os._exit [1]", b"views: &a [*a]",
    b"[" * 600,
    b"epochs: " + b"9" * 5000, b"lr: .inf", b"epochs: 2024-99-99", b"lr: 1\nlr: 2", b"1: 2", b"base: recipe.yaml",
    b"base: loop.yaml", b"epochs: [\"\\e[31m\\n\"]", b"x" * 70_000, b"data: \"\\0\"", b"method: [1]\nviews: [spatial]",
    b"train_split: \"" + b"a" * 10_000 + b"\"\nepochs: x",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_the_command_line_refuses_it_too(cli: Cli, folder: Path, text: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(text)
    outcome = cli("recipes", "show", folder / "recipe.yaml")
    outcome.refused()
    assert outcome.err[:-1].isprintable()
    assert not outcome.out
