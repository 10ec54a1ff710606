"""Lists, shards and tables with labels that are spoilt, for hypothesis."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa
from hypothesis import strategies as st

_ODD = ["", " ", "0", "1", "2", "01", "-1", "1.0", "nan", "null", "²", "٣", "a,b", 'a"b', "\ufeffa", "cat\0", "a\nb"]
_ODD += ["\r", "\x85", "\u2028", "\x1b[31m", "\u202e", "[red]", "\U0001f600", "\udcff", "\ud800", "9" * 5000]
TEXTS = st.one_of(st.sampled_from(["cat", *_ODD]), st.text(max_size=6))
PATHS = ["in/a.png", "in//./b.png", "a.png/b.png", "none/a.png", "out/a.png", "loop/a.png", "loop", "", ".", "\0", "\n"]
PATHS += ["/etc/passwd", "../a.png", "in/../a.png", "\udcff", "\ud800.png", "x" * 300, "x" * 300 + "/a.png"]
PATHS += ["x/" * 3000, "x" * 140_000]
VALUES = st.recursive(
    TEXTS | st.sampled_from([0, 1, None, True, 10**4000, 0.0, float("nan")]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("label"), inner, max_size=1),
    max_leaves=3,
)
# What means something to a reader of CSV or JSON, or to a decoder.
FRAGMENTS = [b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\n\n", b"\t", b" "]
FRAGMENTS += [b'"', b'""', b",", b";", b",,", b"'", b"\\", b"{", b"}", b"[", b"]", b":", b"#", b"path,label,split\n"]
FRAGMENTS += [b"NaN", b"1e999", b"-0", b"9" * 5000, b"\\ud800", b"x" * 140_000, b"[" * 5000, b'{"path":' * 5000]
FRAGMENTS += [b'"label": "twice", ', b'"path": null, ', b'{"label": 0}\n', b"null\n"]
KEYS = ["path", "label", "split"]
HEADERS = [*[KEYS] * 9, ["label", "path", "split"], KEYS[:2], [*KEYS, "label"], ["path", "Label", "split"]]
WHOLE = [("a.png", "cat", "train"), ("in/b.png", "dog", "train"), ("c.png", "cat", "train")]


def spoilt(draw: st.DrawFn, text: str) -> bytes:
    """A text in some encoding, with up to two fragments put between its bytes or in place of some."""
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "latin-1"]))
    content = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        place = draw(st.integers(0, len(content)))
        fragment = draw(st.sampled_from(FRAGMENTS))
        content = content[:place] + fragment + content[place + draw(st.integers(0, 3)) :]
    return content


@st.composite
def csv_lists(draw: st.DrawFn) -> bytes:
    """A list in CSV."""
    rows = [list(row) for row in WHOLE]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(rows))
        match draw(st.sampled_from(["path", "label", "label", "more", "fewer"])):
            case "path":
                row[:1] = [draw(st.sampled_from(PATHS))]
            case "label":
                row[1:2] = [draw(TEXTS)]
            case "more":
                row.append(draw(TEXTS))
            case "fewer":
                del row[-1:]
    written = io.StringIO()
    quoting: Any = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end, delimiter = draw(st.sampled_from(["\n", "\r\n", "\r"])), draw(st.sampled_from(",,,,,;"))
    writer = csv.writer(written, quoting=quoting, lineterminator=end, delimiter=delimiter)
    writer.writerows([draw(st.sampled_from(HEADERS)), *rows])
    return spoilt(draw, written.getvalue())


@st.composite
def json_lists(draw: st.DrawFn) -> bytes:
    """A list in JSON lines."""
    rows: list[dict[str, Any]] = [dict(zip(KEYS, row, strict=True)) for row in WHOLE]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(rows))
        match draw(st.sampled_from(["path", "value", "label", "label", "more", "fewer"])):
            case "path":
                row["path"] = draw(st.sampled_from(PATHS))
            case "value":
                row[draw(st.sampled_from(KEYS))] = draw(VALUES)
            case "label":
                row["label"] = draw(VALUES)
            case "more":
                row[draw(TEXTS)] = draw(VALUES)
            case "fewer":
                row.pop(draw(st.sampled_from(KEYS)), None)
    ascii_only = draw(st.booleans())
    return spoilt(draw, "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows))


MEMBERS = ["a.PNG", "a.cls", "d.png", "d.cls", "a.x.png", "./a.png", "in", "in/a.png", ".cls", "..", "/a.png", "a.CLS"]
MEMBERS += ["\udcff.png", "\n.png", "x" * 90 + ".png", "x" * 300 + ".png", "x" * 300 + "/a.cls", "in/../a", "c.json"]
JSONS = [
    '{"label": %s}',
    '{"label": %s}',
    '{"cls": %s}',
    '{"x": %s}',
    "[%s]",
    '{"label": %s, "label": 0}',
    "[" * 5000 + "%s",
]
PAX = st.dictionaries(
    st.sampled_from(["path", "size", "linkpath", "GNU.sparse.major", "GNU.sparse.name", "hdrcharset", "mtime"]),
    st.sampled_from(["-1", "0", "9" * 30, "x.png", "..", "/a.png", "٣", "BINARY", "\0"]),
    max_size=2,
)
# The fields of a header by their place; kinds, sizes and texts to put there.
PLACES = [0, 100, 124, 136, 148, 156, 157, 257, 345]
LIES = [b"\0", b"0", b"1", b"2", b"5", b"7", b"S", b"x", b"g", b"K", b"L", b"7" * 12, b"-1", b"\x80" + b"\xff" * 11]
LIES += [b"\xff" * 12, b"\x80" + bytes(11), b"00000000001", b"00000002000", b"..", b"\xff", b"ustar  \0", b"x" * 100]
# What `classes.txt` beside a shard may hold.
CLASSES = [b"cat\ndog\n", b"dog\r\ncat", b"0\n1\n", b"1\n0", b"1\n2\n3\n", b"\xef\xbb\xbfdog\ncat\n\n", b"cat\n\ndog\n"]
CLASSES += [b"cat\ncat\n", b"cat\n", b"", b"\n", b"\xff\ncat\n", "a\u2028b\ncat\ndog".encode(), b"a\x0c1\ndog\ncat"]


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    """A shard: names, labels, headers or its end are spoilt."""
    names, texts = ("a", "in/b", "c"), draw(st.sampled_from([("cat", "dog", "cat"), ("0", "1", "0"), ("1", "2", "2")]))
    labels = [(f"{name}.cls", text.encode()) for name, text in zip(names, texts, strict=True)]
    others = [(f"{name}.png", b"pixels") for name in names]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, 2))
        match draw(st.sampled_from(["text", "text", "json", "json", "name", "more"])):
            case "text":
                labels[place] = (labels[place][0], draw(TEXTS).encode(errors="surrogatepass") + b"\n")
            case "json":
                value = draw(st.sampled_from(JSONS)) % json.dumps(draw(VALUES))
                labels[place] = (f"{names[place]}.json", value.encode())
            case "name":
                others[place] = (draw(st.sampled_from(MEMBERS)), b"pixels")
            case "more":
                others.append((draw(st.sampled_from(MEMBERS)), b"1"))
    pax = [draw(PAX) if draw(st.integers(0, 30)) == 30 else {} for _ in (*labels, *others)]
    content, heads = written([*labels, *others], pax, draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    return lying(draw, bytearray(content), heads)


def written(
    members: list[tuple[str, bytes]], pax: Iterable[dict[str, str]] = repeat({}), form: int = tarfile.GNU_FORMAT
) -> tuple[bytes, list[int]]:
    """A shard, and where in it the headers of its members begin."""
    out, heads = io.BytesIO(), []
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for (name, text), headers in zip(members, pax, strict=False):
            heads.append(out.tell())
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(text), headers
            tar.addfile(member, io.BytesIO(text))
    return out.getvalue(), heads


def lying(draw: st.DrawFn, content: bytearray, heads: list[int]) -> bytes:
    """A shard with lies in its headers, under a checksum that holds, or cut short."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        head = draw(st.sampled_from(heads))
        place, lie = head + draw(st.sampled_from(PLACES)), draw(st.sampled_from(LIES))
        content[place : place + len(lie)] = lie
        if draw(st.integers(0, 5)):
            content[head + 148 : head + 156] = b"        "
            content[head + 148 : head + 156] = b"%06o\0 " % sum(content[head : head + 512])
    if draw(st.integers(0, 7)) == 7:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


class Column(NamedTuple):
    """A column of labels: Arrow's type, the values, and what the table says that they are."""

    kind: pa.DataType
    values: list[Any]
    feature: Any = None
    name: str = "label"

    @property
    def table(self) -> pa.Table:
        """A table of images with these labels."""
        images = [{"bytes": b"pixels", "path": None}] * len(self.values)
        features = {"image": {"_type": "Image"}} | ({} if self.feature is None else {self.name: self.feature})
        about = json.dumps({"info": {"features": features}})
        kinds = pa.schema(
            [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (self.name, self.kind)]
        )
        columns = [pa.array(images, kinds[0].type), pa.array(self.values, self.kind)]
        return pa.Table.from_arrays(columns, schema=kinds.with_metadata({"huggingface": about}))


INTEGERS = [0, 1, 2, -1, -2]
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXTS.map(lambda text: text.encode(errors="replace").decode())),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["cat", "dog", ""])),
    (pa.int64(), st.sampled_from([*INTEGERS, 2**40])),
    (pa.int64(), st.sampled_from([0, 1])),
    (pa.int8(), st.sampled_from(INTEGERS)),
    (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    (pa.bool_(), st.booleans()),
    (pa.float64(), st.sampled_from([0.0, 1.0, -1.0, 0.5, float("nan")])),
    (pa.null(), st.none()),
    (pa.list_(pa.int64()), st.lists(st.sampled_from(INTEGERS), max_size=2)),
    (pa.struct([("label", pa.string())]), st.just({"label": "cat"})),
    (pa.binary(), st.sampled_from([b"cat", b"dog", b"\xff"])),
    (pa.timestamp("s"), st.sampled_from([0, 1])),
    (pa.decimal128(5, 2), st.sampled_from([0, 1])),
]
NAMES: list[Any] = [
    ["cat", "dog"],
    ["1", "0", "2"],
    [1, 0, 2],
    ["a", "a"],
    [None, "x"],
    ["\ud800", "b"],
    [],
    "ab",
    {"a": 1},
]
NAMES += [5, None, [[1], [2]], ["cat"], ["", "b"], ["x" * 10_000, "b"], [True, False]]
FEATURES: list[Any] = [
    None,
    None,
    None,
    5,
    {"_type": "Nope"},
    {"_type": "Image"},
    {"_type": "Value", "dtype": "string"},
]
FEATURES += [
    {"_type": "Value", "dtype": "int64"},
    {"feature": {"_type": "ClassLabel", "names": ["a"]}, "_type": "List"},
]
FEATURES += [{"_type": "ClassLabel", "names": names} for names in NAMES]


@st.composite
def columns(draw: st.DrawFn) -> Column:
    """A column of labels of nearly any type, with or without names for them."""
    kind, values = draw(st.sampled_from(KINDS))
    column = draw(st.lists(values, min_size=2, max_size=4))
    if draw(st.integers(0, 5)) == 5:
        column[0] = None
    return Column(
        kind, column, draw(st.sampled_from(FEATURES)), draw(st.sampled_from(["label"] * 9 + ["cls", "klass"]))
    )
