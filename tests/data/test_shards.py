"""Tar shards: how they are read, and which are refused, in one line."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sourcing import (
    caches,  # noqa: F401  # a fixture of every test here
    content,
    images_of,
    samples,
    write_shards,
    write_tar,
)

from scalekd.data import read_split, read_splits
from scalekd.data.sources.tarindex import read_index
from scalekd.errors import UserError


def test_a_shard_is_indexed_once_and_anew_when_it_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(data, tmp_path / "shards")
    first = read_split(shards, "train")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_args, **_kwargs: pytest.fail("indexed again"))
        assert list(read_split(shards, "train").store.names) == list(first.store.names)
    write_tar(shards / "train-00.tar", samples(images_of(data, "train")[:3]))
    assert len(read_split(shards, "train")) == len(first) - 3
    for index in (tmp_path / "cache" / "scalekd" / "indexes").iterdir():
        index.write_bytes(b"spoilt")
    assert len(read_split(shards, "train")) == len(first) - 3


def test_labels_of_shards_are_integers_names_or_json(data: Path, tmp_path: Path) -> None:
    paths = images_of(data, "train")
    number = {"blue": "0", "green": "1", "red": "2"}
    write_tar(tmp_path / "t" / "train-0.tar", samples(paths, lambda p: number[p.parent.name] + "\n"))
    assert read_split(tmp_path / "t", "train").classes == ("0", "1", "2")
    (tmp_path / "t" / "classes.txt").write_text("blue\ngreen\nred\n")
    assert read_split(tmp_path / "t", "train").classes == ("blue", "green", "red")
    (tmp_path / "t" / "classes.txt").write_text("blue\ngreen\n")
    with pytest.raises(UserError, match=r"'2', which is not one of its classes"):
        read_split(tmp_path / "t", "train")
    for key, value in (("label", lambda p: p.parent.name), ("cls", lambda p: int(number[p.parent.name]))):
        members = [m for p in paths for m in ((f"{p.parent.name}{p.stem}.json", json.dumps({key: value(p)}).encode()),
                                              (f"{p.parent.name}{p.stem}.PNG", p.read_bytes()))]  # fmt: skip
        write_tar(tmp_path / key / "train-0.tar", members)
        assert read_split(tmp_path / key, "train").labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_integers_are_ordered_by_value_and_val_follows_train(data: Path, tmp_path: Path) -> None:
    paths = [*images_of(data, "train")][:3]
    rows = zip(paths, ("10", "9", "2"), strict=True)
    (data / "train.csv").write_text("path,label\n" + "".join(f"{p.relative_to(data)},{n}\n" for p, n in rows))
    split = read_split(data, "train")
    assert split.classes == ("2", "9", "10")
    assert split.labels.tolist() == [2, 1, 0]
    for name, order in (("train", "blue green red"), ("val", "red blue green")):
        write_tar(tmp_path / "t" / name / "0.tar", samples(images_of(data, name)))
        (tmp_path / "t" / name / "classes.txt").write_text(order.replace(" ", "\n"))
    train, val = read_splits(tmp_path / "t", "train", "val")
    assert val.classes == train.classes == ("blue", "green", "red")
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]


def by_class(labels: dict[str, str]) -> Callable[[Path], str]:
    return lambda path: labels[path.parent.name]


def test_classes_that_are_called_by_numbers_are_not_merged(data: Path, tmp_path: Path) -> None:
    paths = images_of(data, "train")
    names = ("blue", "green", "red")
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    for texts in ("012", "123"):  # as indices, then as names
        label = by_class(dict(zip(names, texts, strict=True)))
        write_tar(tmp_path / "train-0.tar", samples(paths, label))
        split = read_split(tmp_path, "train")
        assert (split.classes, split.labels.tolist()) == (("1", "2", "3"), [0] * 4 + [1] * 4 + [2] * 4)
    write_tar(tmp_path / "train-0.tar", samples(paths, lambda p: "1" if p.parent.name == "red" else "2"))
    with pytest.raises(UserError, match=r"'[12]' is the name of one class and the index of another"):
        read_split(tmp_path, "train")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("/etc/x.png", "'/etc/x.png' leads out of it"),
        ("a/../../x.png", "leads out of it"),
        (link("x.png", "/etc/passwd"), "'x.png' is a link"),
        (link("x.png", "b.png", tarfile.LNKTYPE), "is a link"),
        (link("x.png", "", tarfile.CHRTYPE), "is a device"),
        (link("x.png", "", tarfile.FIFOTYPE), "is a device or other special file"),
    ],
)
def test_a_shard_that_reaches_out_is_refused(tmp_path: Path, member: str | tarfile.TarInfo, told: str) -> None:
    write_tar(tmp_path / "train-0.tar", [("a.png", b"x"), ("a.cls", b"red"), (member, b"")])
    with pytest.raises(UserError, match=told):
        read_split(tmp_path, "train")


def test_a_damaged_shard_is_named(data: Path, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-0.tar", samples(images_of(data, "train")))
    whole = shard.read_bytes()
    for wrong, told in (
        (whole[: len(whole) // 2], "truncated|unexpected end"),
        (whole[:512], "truncated|unexpected end"),
        (whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512], "truncated or damaged after"),
        (gzip.compress(whole), "uncompressed tar"),
        (b"", "uncompressed tar"),
        (bytes(10240), "holds no images"),
        (whole[:148] + b"0000000\0" + whole[156:], "uncompressed tar"),
    ):
        shard.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"train-0.tar .*({told})"):
            read_split(tmp_path, "train")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_shard_with_a_negative_size_ends(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a.png")
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "train-0.tar").write_bytes(bytes(block) + bytes(10240))
    with pytest.raises(UserError, match=r"train-0\.tar"):
        read_split(tmp_path, "train")


def test_what_is_no_sample_is_refused_or_left_out(data: Path, tmp_path: Path) -> None:
    good = samples(images_of(data, "train"))
    for extra, told in (
        ([("lone.cls", b"red")], "'lone' has a label but no image"),
        ([("two.png", b"x"), ("two.jpg", b"x")], "'two.png' and 'two.jpg' are images of the same sample"),
        ([("bare.png", b"x")], "bare.png has no label"),
        ([("odd.png", b"x"), ("odd.cls", b"\xff")], "'odd.cls' holds no label"),
        ([("odd.png", b"x"), ("odd.json", b"{")], "'odd.json' holds no label"),
        ([("odd.png", b"x"), ("odd.json", b'{"label": [1]}')], "holds no label: .1., neither text, a whole number nor"),
    ):
        write_tar(tmp_path / "train-0.tar", [*good, *extra])
        with pytest.raises(UserError, match=told):
            read_split(tmp_path, "train")
    write_tar(tmp_path / "train-0.tar", [*good, ("README.md", b"x"), ("._a.png", b"x"), ("blue/0.seg.png", b"x")])
    assert len(read_split(tmp_path, "train")) == 12


def test_a_pattern_must_fit_its_shards(data: Path, tmp_path: Path) -> None:
    write_shards(data, tmp_path)
    with pytest.raises(UserError, match=r"train-02\.tar is missing"):
        read_split(f"{tmp_path}/{{split}}-{{00..02}}.tar", "train")
    with pytest.raises(UserError, match=r"write \{split\}"):
        read_split(f"{tmp_path}/train-{{00..01}}.tar", "train")
    with pytest.raises(UserError, match="brace"):
        read_split(f"{tmp_path}/{{split}}-{{00..01.tar", "train")
    with pytest.raises(UserError, match="more than"):
        read_split(f"{tmp_path}/{{split}}-{{0..999999999}}.tar", "train")
    assert len(read_split(f"{tmp_path}/{{split}}.tar", "train-{00..01}")) == 12


def test_braces_behind_a_urls_path_are_refused() -> None:
    for pattern, name in (("get?f={split}-0.tar", "train"), ("{split}.tar?f={0..1}", "train"), ("{split}", "x?f=1")):
        with pytest.raises(UserError, match=r"not after \? or #|without \? and #"):
            read_split(f"http://127.0.0.1:9/{pattern}", name)


def test_a_pattern_of_too_many_words_is_refused() -> None:
    with pytest.raises(UserError, match="more than"):
        read_split("/nowhere/{split}-" + "{a..z}" * 4 + ".tar", "train")


def test_a_shard_of_the_same_size_and_time_is_indexed_anew(data: Path, tmp_path: Path) -> None:
    shards = write_shards(data, tmp_path / "shards")
    before = read_split(shards, "train")
    shard = shards / "train-00.tar"
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    shard.write_bytes(shard.read_bytes().replace(b"blue/0.", b"blue/9."))
    content = bytearray(shard.read_bytes())
    for start in range(0, len(content), 512):
        block = content[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b"        "
            content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    shard.write_bytes(content)
    os.utime(shard, ns=times)
    assert list(read_split(shards, "train").store.names) != list(before.store.names)


def test_an_index_with_any_bit_flipped_is_made_again(data: Path, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-0.tar", samples(images_of(data, "train")))
    expected = list(read_index(shard).names)
    (kept,) = (tmp_path / "cache" / "scalekd" / "indexes").iterdir()
    whole = kept.read_bytes()
    for place in (4, 6, 8, whole.rindex(b"PK\1\2") + 6, whole.rindex(b"PK\1\2") + 8, whole.rindex(b"PK\1\2") + 10):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x41
        kept.write_bytes(spoilt)
        assert list(read_index(shard).names) == expected


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.tar")
    with pytest.raises(UserError, match="not a regular file"):
        read_split(tmp_path, "train")


def test_an_image_folder_comes_before_stray_shards(data: Path, tmp_path: Path) -> None:
    expected = read_split(data, "train")
    for stray in ("train-backup.tar", "train-0.tar", "train/n01440764.tar"):
        write_tar(data / stray, samples(images_of(data, "val")))
        assert content(read_split(data, "train")) == content(expected), stray
    write_shards(data, tmp_path / "shards")
    write_tar(tmp_path / "shards" / "train-extra-0.tar", samples(images_of(data, "val")))
    assert len(read_split(tmp_path / "shards", "train")) == 12
