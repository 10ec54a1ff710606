"""Lists of images that are refused, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from sourcing import (
    caches,  # noqa: F401  # a fixture of every test here
    images_of,
    write_list,
)

from scalekd.data import read_split, read_splits
from scalekd.errors import UserError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour,label\na,b\n", "no column 'path'.*it has 'colour', 'label'.*path_column"),
        ("TRAIN,blue,train\n", "its first line names an image"),
        ("", "no columns"),
        ("path,split\nTRAIN,train\n", "line 2 has no label: there is no column of labels among path, split"),
        ("path,label,split\nTRAIN,,train\n", "line 2 has no label"),
        ("path,label\nTRAIN,blue\n", "line 2 has no split"),
        ("path,label,split\n,blue,train\n", "line 2 has no path"),
        (
            "path,label,split\nTRAIN,blue,train\nnone/x.png,red,train\n",
            "line 3: 'none/x.png' does not exist .No such file",
        ),
        ("path,label,split\nx.png,blue,train\n", "none of its 1 files exists; line 2 names 'x.png', which is not in"),
        ("path,label,split\nTRAIN,blue,val\n", "no rows of split 'train'"),
        ("path,label,split\n\udcff,blue,val\n", "is not UTF-8 text"),
    ],
)
def test_a_wrong_list_is_refused(data: Path, text: str, told: str) -> None:
    one = str(images_of(data, "train")[0].relative_to(data))
    (data / "list.csv").write_bytes(text.replace("TRAIN", one).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told):
        read_split(data / "list.csv", "train")


def test_wrong_json_lines_and_unknown_labels_are_refused(data: Path) -> None:
    file = data / "list.jsonl"
    for text, told in (("{", "line 1 is not JSON"), ("[1]", "not a JSON object"), ("[" * 100_000, "not JSON")):
        file.write_text(text)
        with pytest.raises(UserError, match=told):
            read_split(file, "train")
    lines = write_list(data, file, "train", "val").read_text()
    file.write_text(lines.replace('"red", "split": "val"', '"rot", "split": "val"'))
    with pytest.raises(UserError, match=r"classes differ: red .*list|classes differ: red"):
        read_splits(file, "train", "val")
    with pytest.raises(UserError, match="no such file"):
        read_split(data / "none.csv", "train")


def test_a_path_that_no_file_can_have_is_refused(data: Path) -> None:
    (data / "list.jsonl").write_text('{"path": "a\\ud800.png", "label": "a", "split": "train"}\n')
    with pytest.raises(UserError, match="line 1 names"):
        read_split(data / "list.jsonl", "train")
