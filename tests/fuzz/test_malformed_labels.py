"""2,650 malformed labels in lists, shards and tables: read as a plain reading does, or refused in one line."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from torchvision.datasets.folder import IMG_EXTENSIONS

pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from spoiling import CLASSES, KEYS, Column, columns, csv_lists, json_lists, shards, written  # noqa: E402

from scalekd.data import Split, open_data, read_label_free  # noqa: E402
from scalekd.errors import UserError  # noqa: E402

Rows = list[tuple[str, str]]  # names of images, and of their classes
numbers = itertools.count()  # a folder for each example, as what is in one may be known by its path


def check_line(error: Exception) -> None:
    line = str(error)
    assert line.isprintable(), line
    assert 0 < len(line) < 2100


def outcome(data: str | Path) -> Rows | None:
    """The images of a split and their classes; None where it is refused, as it should be."""
    splits: list[Split] = []
    for labelled in (True, False):
        try:
            splits.append(
                open_data(data).read("train") if labelled else read_label_free(data, "train", "none", "none")[0]
            )
        except UserError as error:
            check_line(error)
    if splits:
        assert set(splits[-1].labels.tolist()) == {-1}, "what can be read with labels can be read without"
    if len(splits) < 2:
        event("refused")
        return None
    event("read")
    classes, labels, names = splits[0].classes, splits[0].labels.tolist(), list(splits[0].store.names)
    assert list(splits[1].store.names) == names
    assert all(type(name) is str and os.fsencode(name) for name in classes)
    assert len(set(classes)) == len(classes) > 0
    assert set(labels) <= set(range(len(classes)))
    return [(name, classes[label]) for name, label in zip(names, labels, strict=True)]


def plain_key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def plain_csv(text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file as RFC 4180 has them, with its own separator and blanks around fields; it must be one."""
    first = re.split("[\r\n]", text)[0]
    separator = max(
        ",;\t|", key=lambda each: ("path" in map(plain_key, first.split(each)), first.count(each), each == ",")
    )
    pattern = r' *(?:"((?:[^"]|"")*)"|((?!")[^SEP\r\n]*))(SEP|\r\n|\r|\n|\Z)'.replace("SEP", re.escape(separator))
    rows: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        field = re.compile(pattern).match(text, at)
        assert field is not None, "a quote is not closed, or not at a field's ends"
        quoted, bare, end = field.groups()
        rows[-1].append(bare if quoted is None else quoted.replace('""', '"'))
        if end != separator:
            rows.append([])
        at = field.end()
    header, *rest = rows
    header = [name.strip().lower() for name in header]
    assert all(header.count(key) < 2 for key in KEYS), "which column is meant?"
    assert not any(field for row in rest for field in row[len(header) :]), "what is beyond the columns?"
    return [
        {name: field if name == "path" else field.strip(" \t") for name, field in zip(header, row, strict=False)}
        for row in rest
        if row not in ([], [""])
    ]


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "which value is meant?"
    return dict(pairs)


def plain_json(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; it must be such."""
    lines = [line for line in re.split("\r\n|\r|\n", text) if line.strip()]
    return [row for line in lines if (row := json.loads(line, object_pairs_hook=once)) is not None]


def meant(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Class names of labels that are names, or indices of names; it must be clear which."""
    indices = {str(index): name for index, name in enumerate(names)}
    by_name = list(labels) if set(labels) <= set(names) else None
    by_index = [indices[label] for label in labels] if set(labels) <= set(indices) else None
    assert None in (by_name, by_index) or by_name == by_index, "which is meant?"
    return by_name or by_index or [label if label in names else indices[label] for label in labels]


def plain_shard(content: bytes, classes: bytes) -> Rows:
    """The samples of a shard as tarfile reads them."""
    found: dict[str, dict[str, str]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar.getmembers():
            parts = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", member.name, re.DOTALL)
            if parts and member.isfile() and (file := tar.extractfile(member)):
                kind = parts[2].lower()
                kind = "image" if f".{kind}" in IMG_EXTENSIONS else kind
                sample = found.setdefault(parts[1], {})
                assert kind not in sample or kind not in ("image", "cls", "json"), "which is meant?"
                sample[kind] = member.name if kind == "image" else file.read().decode().strip()
    samples = {each["image"]: plain_label(each) for each in found.values() if "image" in each}
    names = [line.strip() for line in re.split("\r\n|\r|\n", classes.decode("utf-8-sig").rstrip()) if classes.strip()]
    assert all(names), "do empty lines count?"
    labels = meant(list(samples.values()), names) if names else samples.values()
    return [(f"train-0.tar/{name}", label) for name, label in zip(samples, labels, strict=True)]


def plain_label(sample: dict[str, str]) -> str:
    if text := sample.get("cls"):
        return str(int(text)) if text.isdecimal() else text
    entries = json.loads(sample["json"], object_pairs_hook=once)
    return whole(entries.get("label", entries.get("cls")))


def whole(label: Any) -> str:
    """A label as text, a whole number without a point."""
    assert type(label) in (str, int, bool, float), "is it a label?"
    return str(int(label)) if type(label) is float else str(label)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data is."""
    path = tmp_path_factory.mktemp("labels")
    (path / "in").mkdir()
    (path / "a.png").touch()
    (path / "out").symlink_to("/etc")
    (path / "loop").symlink_to("loop")
    return path


def of(row: dict[str, Any], key: str) -> Any:
    """A row's value of a key, however the key is written."""
    return row[key] if key in row else next(value for name, value in row.items() if plain_key(name) == key)


def plain_path(path: str) -> str:
    """A path that is there as it is written, any other with slashes for backslashes."""
    return os.path.normpath(path if os.path.exists(path) else path.strip(" \t").replace("\\", "/"))


def check_list(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        read = outcome(file.parent if file.stem == "train" else file)
    finally:
        file.unlink()
    if read is not None:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = (plain_csv if file.suffix == ".csv" else plain_json)(text)
        mine = [row for row in rows if file.stem == "train" or of(row, "split") == "train"]
        assert read == [(plain_path(str(of(row, "path"))), whole(of(row, "label"))) for row in mine]


@example(b'path,label\na.png,cat\nin/b.png,dog\nc.png,"cat\nd.png,dog\n', "train.csv")  # rows as part of a label
@example(b'path,label\na.png,"cat"s\nin/b.png,dog\n', "train.csv")
@example(b"path,label\na.png,Dane, great\nin/b.png,dog\n", "train.csv")
@example(b"path,label,split,label\na.png,cat,train,dog\nin/b.png,dog,train,cat\n", "list.csv")
@example(b"path,label\n" + b"x" * 300 + b"/a.png,cat\nin/b.png,dog\n", "train.csv")
@settings(max_examples=1000)
@given(content=csv_lists(), name=st.sampled_from(["list.csv", "train.csv"]))
def test_malformed_csv(folder: Path, content: bytes, name: str) -> None:
    check_list(folder / name, content)


@example(b'{"path": "a.png", "label": "\\ud800"}\n{"path": "c.png", "label": "dog"}\n', "train.jsonl")
@example(b'{"path": "a.png", "label": "a", "label": "b"}\n{"path": "c.png", "label": "a"}\n', "train.jsonl")
@settings(max_examples=1000)
@given(content=json_lists(), name=st.sampled_from(["list.jsonl", "train.jsonl"]))
def test_malformed_json_lines(folder: Path, content: bytes, name: str) -> None:
    check_list(folder / name, content)


PAIR = [("a.png", b""), ("a.cls", b"0"), ("b.png", b""), ("b.cls", b"1")]


@example(written([*PAIR, ("b.CLS", b"2")])[0], b"")
@example(written([*PAIR[:3], ("b.json", b'{"label": "\\ud800"}')])[0], b"")
@example(written([*PAIR[:3], ("b.json", b'{"label": "a", "label": "b"}')])[0], b"")
@example(written(PAIR)[0], b"cat\n\ndog\n")  # which of the two is 1?
@example(written(PAIR)[0], "cat\u2028a\ndog\n".encode())
@settings(max_examples=500)
@given(content=shards(), classes=st.sampled_from([b""] * 9 + CLASSES))
def test_malformed_shards(folder: Path, content: bytes, classes: bytes) -> None:
    place = folder / str(next(numbers))
    place.mkdir()
    (place / "train-0.tar").write_bytes(content)
    (place / "classes.txt").write_bytes(classes)
    read = outcome(place)
    assert outcome(place) == read, "from the index that was kept"
    if read is not None:
        assert sorted(read) == sorted(plain_shard(content, classes))


@example(Column(pa.int64(), [0, 1], {"_type": "ClassLabel", "names": [1, 0]}))
@example(Column(pa.int64(), [0, 1], {"_type": "ClassLabel", "names": ["\ud800", "a"]}))
@settings(max_examples=150)
@given(column=columns())
def test_malformed_tables(folder: Path, column: Column) -> None:
    place = folder / str(next(numbers))
    place.mkdir()
    pq.write_table(column.table, place / "train.parquet")
    read = outcome(f"hf:{place}")
    if read is not None:
        names = [str(name) for name in (column.feature or {}).get("names", ()) if column.kind == pa.int64()]
        assert [label for _, label in read] == [names[value] if names else whole(value) for value in column.values]


COMMANDS: list[tuple[str, bytes]] = [
    ("val.csv", b"path,label\na.png,cat\x1b[31m\n"),
    ("val.csv", b'path,label\n"a.png,cat\n'),
    ("val.csv", b"\xff\xfep\0a\0"),
    ("val.csv", b"path,label\n" + b"x" * 300 + b"/a.png,a\na.png,b\n"),
    ("val.jsonl", b"[" * 100_000),
    ("val.jsonl", b'{"path": "a.png", "label": ' + b"9" * 5000 + b"}"),
    ("val.jsonl", b'{"path": "a.png", "label": "\\ud800"}\n{"path": "b.png", "label": "\\n"}\n'),
    ("val-0.tar", written([*PAIR, ("b.CLS", b"2")])[0]),
    ("val-0.tar", written([*PAIR, ("..", b"")])[0]),
    ("val-0.tar", written(PAIR)[0][:1100]),
]


@pytest.mark.parametrize("case", range(len(COMMANDS)))
def test_the_command_line_refuses_it_too(cli: Cli, tmp_path: Path, case: int) -> None:
    name, content = COMMANDS[case]
    (tmp_path / name).write_bytes(content)
    outcome = cli("data", "check", tmp_path)
    outcome.refused(str(tmp_path))
    assert outcome.err[:-1].isprintable()
    assert not outcome.out


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_what_is_no_file_is_no_list(cli: Cli, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    cli("data", "check", tmp_path / name).refused("not a regular file")
