"""Lists as tools write them: columns, separators, slashes, labels, and the folder of their paths."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sourcing import images_of

from scalekd.data import Split, open_data, read_label_free, read_split, read_splits
from scalekd.errors import UserError
from scalekd.recipes import Recipe, SourceKeys

BLUE, GREEN = ("train/blue/0.png", "train/green/0.png")


def rows_of(data: Path) -> list[tuple[str, str, str]]:
    """Path, label and split of each image of `data`."""
    return [(str(p.relative_to(data)), p.parent.name, s) for s in ("train", "val") for p in images_of(data, s)]


def write(file: Path, header: str, rows: Sequence[Sequence[object]], separator: str = ",") -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n")
    return file


def assert_whole(split: Split, data: Path, name: str = "train") -> None:
    """Assert that a split has the images of `data`, each with its class."""
    found = {Path(split.locate(index)).resolve(): split.classes[split.labels[index]] for index in range(len(split))}
    assert found == {path.resolve(): path.parent.name for path in images_of(data, name)}


@pytest.mark.parametrize(
    "header",
    [
        "path,label,split",
        "filename,class,set",
        "image,category,subset",
        "image_path,target,split",
        "File Name,Class Name,Partition",
        "img_path,y,phase",
        "image_id,class_id,fold",
        '"path","label","split"',
        " path , label , split ",
        "\ufeffpath,label,split",
    ],
)
def test_usual_names_of_columns(data: Path, header: str) -> None:
    assert_whole(read_split(write(data / "list.csv", header, rows_of(data)), "train"), data)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".CSV"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", " ; "])
def test_separators_are_seen_in_the_first_line(data: Path, ending: str, separator: str) -> None:
    header = separator.join(("path", "label", "split"))
    train, val = read_splits(write(data / f"list{ending}", header, rows_of(data), separator), "train", "val")
    assert_whole(train, data)
    assert_whole(val, data, "val")


def test_a_label_may_hold_the_other_separators(data: Path) -> None:
    rows = [(path, f'"{label}, or; so"', split) for path, label, split in rows_of(data)]
    assert read_split(write(data / "list.csv", "path;label;split", rows, ";"), "train").classes[0] == "blue, or; so"


def test_named_columns_and_separator(data: Path) -> None:
    rows = [(number, path, label, split) for number, (path, label, split) in enumerate(rows_of(data))]
    file = write(data / "list.csv", "path~where~what~part", rows, "~")
    keys = Recipe(path_column="where", label_column="what", split_column="part", separator="~")
    assert_whole(read_splits(file, "train", "val", keys)[0], data)
    with pytest.raises(UserError, match=r"no column 'wher' \(path_column\); did you mean 'where'\?; it has 'path', 'w"):
        read_split(file, "train", SourceKeys(path_column="wher", separator="~"))


@pytest.mark.parametrize("name", ["tab", "\\t", "\t"])
def test_separators_have_names(data: Path, name: str) -> None:
    file = write(data / "list.txt", "path\tlabel\tsplit", rows_of(data), "\t")
    assert_whole(read_split(file, "train", Recipe(separator=name)), data)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("filename,image_path,label,split", "paths: 'filename', 'image_path'; specify one as path_column"),
        ("path,class,category,split", "labels: 'class', 'category'; specify one as label_column"),
        ("path,label,set,subset", "splits: 'set', 'subset'; specify one as split_column"),
        ("path,label,split,label", "two columns 'label'; remove one"),
    ],
)
def test_two_columns_that_may_be_meant_are_asked_about(data: Path, header: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_split(write(data / "list.csv", header, [(BLUE, "a", "b", "train")]), "train")


def test_backslashes_are_read_where_a_file_is_there(data: Path) -> None:
    rows = [(path.replace("/", "\\"), label, split) for path, label, split in rows_of(data)]
    assert_whole(read_split(write(data / "list.csv", "path,label,split", rows), "train"), data)
    lines = [json.dumps(dict(zip(("path", "label", "split"), row, strict=True))) for row in rows]
    (data / "list.jsonl").write_text("\n".join(lines))
    assert_whole(read_split(data / "list.jsonl", "train"), data)
    odd = data / "train" / "blue" / "a\\b.png"  # a backslash is part of a name here
    odd.write_bytes(images_of(data, "train")[0].read_bytes())
    write(data / "list.csv", "path,label,split", [("train/blue/a\\b.png", "blue", "train"), (GREEN, "green", "train")])
    assert read_split(data / "list.csv", "train").locate(0) == str(odd)


@pytest.mark.parametrize("where", ["beside", "above", "absolute", "working folder"])
def test_paths_begin_at_the_list_or_the_working_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    begin = {"beside": "", "above": "../data/", "absolute": f"{data}/", "working folder": "data/"}[where]
    folder = data if where == "beside" else tmp_path / "lists"
    file = write(folder / "list.csv", "path,label,split", [(begin + row[0], *row[1:]) for row in rows_of(data)])
    monkeypatch.chdir(tmp_path)
    assert_whole(read_split(file, "train"), data)
    assert_whole(read_split(file.relative_to(tmp_path), "train"), data)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("C:\\photos\\0.png", "it is a Windows path"),
        ("https://example.org/0.png", "it is a URL"),
        ("train/blue/0", "'0.png' is: write the paths with their endings"),
        ("blue/0.png", "it is in .*train: make the paths relative to the list's folder"),
        ("/nowhere/0.png", "'/nowhere/0.png', which is not$"),
    ],
)
def test_where_no_file_is_there_it_says_so(data: Path, path: str, told: str) -> None:
    file = write(data / "list.csv", "path,label,split", [(path, "a", "train")])
    with pytest.raises(UserError, match=f"none of its 1 files exists; line 2 names .*{told}"):
        read_split(file, "train")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ((0, 1), ("0", "1")),
        ((0.0, 1.0), ("0", "1")),
        ((False, True), ("False", "True")),
        ((9, 10), ("9", "10")),
        (("a", 7.0), ("7", "a")),
    ],
)
@pytest.mark.parametrize("key", ["label", "class"])
def test_labels_of_json(data: Path, values: tuple[object, object], classes: tuple[str, str], key: str) -> None:
    lines = [
        json.dumps({"file_name": path, key: value, "split": "train"})
        for path, value in zip((BLUE, GREEN), values, strict=True)
    ]
    (data / "list.jsonl").write_text("\n".join(lines))
    split = read_split(data / "list.jsonl", "train")
    assert split.classes == classes
    assert [split.classes[label] for label in split.labels] == [str(v).removesuffix(".0") for v in values]


@pytest.mark.parametrize(
    ("value", "told"),
    [("null", r"line 1 has no label \(if"), ("NaN", r"line 1 has no label \(if"), ('""', r"line 1 has no label \(if"),
     ("0.5", "line 1: label is 0.5, neither text, a whole number nor true or false$"),
     ("[1]", r"line 1: label is \[1\]"), ('{"a": 1}', "line 1: label is {'a': 1}")],
)  # fmt: skip
def test_labels_that_are_none(data: Path, value: str, told: str) -> None:
    (data / "list.jsonl").write_text(f'{{"path": "{BLUE}", "label": {value}, "split": "train"}}\n')
    with pytest.raises(UserError, match=told):
        read_split(data / "list.jsonl", "train")


def test_a_list_a_split(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for number, name in enumerate(("train", "val", "unlabelled")):
        rows = [(f"../data/{row[0]}", row[1])[: 1 if name == "unlabelled" else 2] for row in rows_of(data)]
        rows = [row for row in rows if f"/{name}/" in row[0] or name == "unlabelled"]
        write(tmp_path / "lists" / f"{name}{('.tsv', '.csv', '.txt')[number]}", "file,class", rows)
    (tmp_path / "lists" / "unlabelled.txt").write_text(f"path\n../data/{BLUE}\n")
    for names in (("train", "val", "unlabelled"), ("train.tsv", "val.csv", "unlabelled.txt")):
        train, val = read_splits(tmp_path / "lists", *names[:2])
        assert_whole(train, data)
        assert_whole(val, data, "val")
        assert len(read_label_free(tmp_path / "lists", *names)[0]) == 13


def test_a_text_beside_an_image_folder_is_no_list_of_it(data: Path) -> None:
    (data / "train.txt").write_text("how the images were taken\n")
    assert_whole(read_split(data, "train"), data)


def test_a_list_without_a_column_of_splits_says_what_to_do(data: Path) -> None:
    file = write(data / "all.csv", "path,label", [(BLUE, "blue")])
    with pytest.raises(
        UserError, match=r"no column of splits. Specify it as split_column, or write one list per split"
    ):
        read_split(file, "train")
    write(file, "path,label,is_valid", [(BLUE, "a", False), (GREEN, "b", False)])
    assert len(read_split(file, "False", SourceKeys(split_column="is_valid"))) == 2


def test_utf_16_is_read_and_other_encodings_are_named(data: Path) -> None:
    text = f"path\tlabel\tsplit\r\n{BLUE}\tgrün\ttrain\r\n{GREEN}\trot\ttrain\r\n"
    for encoded in (text.encode("utf-16"), codecs.BOM_UTF16_BE + text.encode("utf-16-be"), text.encode("utf-8-sig")):
        (data / "list.txt").write_bytes(encoded)
        assert read_split(data / "list.txt", "train").classes == ("grün", "rot")
    (data / "list.txt").write_bytes(text.encode("cp1252"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_split(data / "list.txt", "train")


@pytest.mark.parametrize(
    ("name", "told"),
    [("list.json", "save it as .jsonl"), ("t.parquet", "hf:FOLDER"), ("t.xlsx", "save it as CSV"),
     ("t.zip", "unpack it"), ("t.tar.gz", "unpack it"), ("t.yaml", "specify a folder, a list")],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=f"is a file of another kind; .*{told}"):
        open_data(tmp_path / name)


def test_columns_are_refused_for_what_is_no_list(data: Path) -> None:
    for place in (data, "torchvision:CIFAR10", "/data/{split}-{0..1}.tar"):
        with pytest.raises(UserError, match="label_column: applies to lists only"):
            read_split(place, "train", SourceKeys(label_column="class"))
