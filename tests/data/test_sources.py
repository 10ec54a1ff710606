"""The same images from every source; and what is wrong with a source, in one line."""

from __future__ import annotations

import csv
import gzip
import http.server
import io
import json
import os
import shutil
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RUN, Cli, write_images
from PIL import Image

from scalekd.data import Split, join, open_data, read_label_free, read_split, read_splits, read_unlabelled
from scalekd.data.sources import downloads
from scalekd.data.sources.tarindex import read_index
from scalekd.errors import UserError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(downloads, "_WAITS", (0.0, 0.0))
    return tmp_path / "cache"


def images_of(data: Path, split: str) -> list[Path]:
    return sorted((data / split).glob("*/*"))


def write_list(data: Path, file: Path, *splits: str) -> Path:
    rows = [
        {"path": str(path.relative_to(file.parent)), "label": path.parent.name, "split": split}
        for split in splits
        for path in images_of(data, split)
    ]
    with open(file, "w", newline="") as out:
        if file.suffix == ".jsonl":
            out.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(out, ["path", "label", "split"])
            writer.writeheader()
            writer.writerows(rows)
    return file


def write_tar(file: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def samples(paths: list[Path], label: Callable[[Path], str] = lambda path: path.parent.name) -> list[tuple[str, bytes]]:
    return [
        member
        for path in paths
        for member in (
            (f"{path.parent.name}/{path.stem}.cls", label(path).encode()),
            (f"{path.parent.name}/{path.name}", path.read_bytes()),
        )
    ]


def write_shards(data: Path, folder: Path) -> Path:
    for split in ("train", "val"):
        paths = images_of(data, split)
        for number in range(2):
            half = paths[number * len(paths) // 2 : (number + 1) * len(paths) // 2]
            write_tar(folder / f"{split}-{number:02d}.tar", samples(half))
    return folder


def write_parquet(data: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        paths = images_of(data, split)
        rows = {
            "image": [{"bytes": p.read_bytes(), "path": p.name} for p in paths],
            "label": [p.parent.name for p in paths],
        }
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """What lies in `tmp_path`, behind a URL, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(tmp_path), **kwargs)  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()
        thread.join()


@pytest.fixture
def everywhere(data: Path, tmp_path: Path, server: tuple[str, list[str]]) -> dict[str, str]:
    """The images of `data`, in each source."""
    listed = tmp_path / "listed"
    shutil.copytree(data, listed)
    for split in ("train", "val"):
        write_list(listed, listed / f"{split}.csv", split)
    write_shards(data, tmp_path / "shards")
    for tar in (tmp_path / "shards").glob("*.tar"):
        split, number = tar.stem.split("-")
        (tmp_path / "nested" / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(tar, tmp_path / "nested" / split / f"{number}.tar")
    saved = {s: datasets.load_dataset("imagefolder", data_dir=str(data / s), split="train") for s in ("train", "val")}
    datasets.DatasetDict({s: d.map(lambda row: row) for s, d in saved.items()}).save_to_disk(str(tmp_path / "arrow"))
    return {
        "folder": str(data),
        "list": str(write_list(data, data / "list.csv", "train", "val")),
        "json lines": str(write_list(data, data / "list.jsonl", "train", "val")),
        "a list a split": str(listed),
        "shards": str(tmp_path / "shards"),
        "shards in folders": str(tmp_path / "nested"),
        "pattern": str(tmp_path / "shards" / "{split}-{00..01}.tar"),
        "URL": f"{server[0]}/shards/{{split}}-{{00..01}}.tar",
        "parquet": f"hf:{write_parquet(data, tmp_path / 'parquet')}",
        "arrow": f"hf:{tmp_path / 'arrow'}",
    }


def content(split: Split) -> list[bytes]:
    opened = [split.store.open(index) for index in range(len(split))]
    return [Path(each).read_bytes() if isinstance(each, str) else each.read() for each in opened]


def test_every_source_holds_the_same_images_labels_and_classes(everywhere: dict[str, str]) -> None:
    train, val = read_splits(everywhere["folder"], "train", "val")
    for source, place in everywhere.items():
        for expected, found in zip((train, val), read_splits(place, "train", "val"), strict=True):
            assert found.classes == ("blue", "green", "red"), source
            assert found.labels.tolist() == expected.labels.tolist(), source
            assert content(found) == content(expected), source
            assert found.store.size(3) == len(content(found)[3]), source
            assert len(set(found.store.names)) == len(expected), source
        free, _ = read_label_free(place, "train", "val", "unlabelled")
        assert free.unlabelled == 12, source
        with pytest.raises(UserError, match="trian"):
            read_split(place, "trian")


def test_a_run_does_not_depend_on_the_source(
    cli: Cli, everywhere: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    hashes = set()
    for number, source in enumerate(("folder", "list", "shards", "parquet")):
        run = tmp_path / f"run{number}"
        outcome = cli(
            *("distill", "--data", everywhere[source], "--output", run, "--teacher", teacher_file),
            *("--no-check-teacher", *TINY_RUN, "--workers", "1" if source == "shards" else "0", "--epochs", "1"),
        )
        assert outcome.code == 0, outcome.err
        hashes.add(json.loads((run / "result.json").read_text())["sha256"])
    assert len(hashes) == 1
    assert cli("evaluate", run, "--json").out == cli("evaluate", tmp_path / "run0", "--json").out


def test_shards_behind_urls_are_downloaded_once(
    everywhere: dict[str, str], server: tuple[str, list[str]], tmp_path: Path
) -> None:
    read_splits(everywhere["URL"], "train", "val")
    assert sum(path.endswith(".tar") for path in server[1]) == 4
    server[1].clear()
    shutil.rmtree(tmp_path / "shards")
    read_splits(everywhere["URL"], "train", "val")
    assert not any(path.endswith(".tar") for path in server[1])


def test_a_url_that_is_not_there_is_named(everywhere: dict[str, str], server: tuple[str, list[str]]) -> None:
    with pytest.raises(UserError, match=r"train-02.tar: the server says 404"):
        read_split(everywhere["URL"].replace("01", "02"), "train")
    assert server[1].count("/shards/train-02.tar") == 1, "what is not there is not asked for again"
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        read_split("http://127.0.0.1:9/{split}-0.tar", "train")
    with pytest.raises(UserError, match="http:// and https:// only"):
        read_split("s3://bucket/{split}-0.tar", "train")


def test_a_download_that_breaks_off_leaves_nothing(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tries.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        with pytest.raises(UserError, match=r"cannot be downloaded: .*990 more expected"):
            read_split(f"http://127.0.0.1:{serving.server_port}/{{split}}.tar", "train")
        serving.shutdown()
        thread.join()
    assert len(tries) == 3
    assert [p.name for p in caches.rglob("*") if p.is_file()] == [".lock"]


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
    with pytest.raises(UserError, match=r"'2', which is none of its classes"):
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
        ([("two.png", b"x"), ("two.jpg", b"x")], "'two.png' and 'two.jpg' are one sample"),
        ([("bare.png", b"x")], "bare.png has no label"),
        ([("odd.png", b"x"), ("odd.cls", b"\xff")], "'odd.cls' holds no label"),
        ([("odd.png", b"x"), ("odd.json", b"{")], "'odd.json' holds no label"),
        ([("odd.png", b"x"), ("odd.json", b'{"label": [1]}')], "neither text nor an integer"),
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label\na,b\n", "no column 'path'"),
        ("", "no column 'path'"),
        ("path,split\nTRAIN,train\n", "line 2 has no label"),
        ("path,label,split\nTRAIN,,train\n", "line 2 has no label"),
        ("path,label\nTRAIN,blue\n", "line 2 has no split"),
        ("path,label,split\n,blue,train\n", "line 2 has no path"),
        ("path,label,split\n/etc/x.png,blue,train\n", "line 2 names '/etc/x.png'"),
        ("path,label,split\ntrain/../../x.png,blue,train\n", "paths must stay"),
        ("path,label,split\nout/x.png,blue,train\n", "'out/x.png' is in a link that leads out"),
        ("path,label,split\ntrain/out.png,blue,train\n", "'train/out.png' is a link that leads out"),
        ("path,label,split\nnone/x.png,blue,train\n", "no such folder"),
        ("path,label,split\nTRAIN,blue,train\n", "one class, 'blue'"),
        ("path,label,split\nTRAIN,blue,val\n", "no rows of split 'train'"),
        ("path,label,split\n\udcff,blue,val\n", "no text"),
    ],
)
def test_a_wrong_list_is_refused(data: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    os.symlink(tmp_path / "elsewhere", data / "out")
    os.symlink(tmp_path / "elsewhere" / "x.png", data / "train" / "out.png")
    one = str(images_of(data, "train")[0].relative_to(data))
    (data / "list.csv").write_bytes(text.replace("TRAIN", one).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told):
        read_split(data / "list.csv", "train")


def test_wrong_json_lines_and_unknown_labels_are_refused(data: Path) -> None:
    file = data / "list.jsonl"
    for text, told in (("{", "line 1 is no JSON"), ("[1]", "no JSON object"), ("[" * 100_000, "no JSON")):
        file.write_text(text)
        with pytest.raises(UserError, match=told):
            read_split(file, "train")
    lines = write_list(data, file, "train", "val").read_text()
    file.write_text(lines.replace('"red", "split": "val"', '"rot", "split": "val"'))
    with pytest.raises(UserError, match=r"classes differ: red .*list|classes differ: red"):
        read_splits(file, "train", "val")
    with pytest.raises(UserError, match="no such file"):
        read_split(data / "none.csv", "train")


def test_unlabelled_images_join_from_every_kind_of_split(data: Path, tmp_path: Path) -> None:
    write_images(data / "unlabelled", 2, seed=5)
    train = read_split(data, "train")
    folder = join(train, read_unlabelled(data, "unlabelled"))
    (data / "unlabelled.csv").write_text(
        "path\n" + "".join(f"{p.relative_to(data)}\n" for p in images_of(data, "unlabelled"))
    )
    listed = join(train, read_unlabelled(data, "unlabelled"))
    os.remove(data / "unlabelled.csv")
    write_tar(
        data / "unlabelled-0.tar", [(p.parent.name + p.name, p.read_bytes()) for p in images_of(data, "unlabelled")]
    )
    expected = content(folder)
    assert content(listed) == expected
    shutil.rmtree(data / "unlabelled")
    sharded = join(train, read_unlabelled(data, "unlabelled"))
    assert content(sharded) == expected
    assert list(folder.store.names) == list(listed.store.names)
    assert (len(sharded), sharded.unlabelled, sharded.root) == (18, 6, data)
    assert "unlabelled-0.tar" in sharded.locate(17)
    assert sharded.store.size(17) == len(content(sharded)[17])


def test_wrong_tables_are_refused(data: Path, tmp_path: Path) -> None:
    def save(**columns: list[object]) -> str:
        shutil.rmtree(tmp_path / "table", ignore_errors=True)
        (tmp_path / "table").mkdir()
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "table" / "train.parquet")
        return f"hf:{tmp_path / 'table'}"

    picture = {"bytes": images_of(data, "train")[0].read_bytes(), "path": None}
    for columns, told in (
        ({"picture": [picture], "label": [1]}, "no column 'image'"),
        ({"image": [picture], "klass": ["a"]}, "no column 'label'"),
        ({"image": [picture] * 2, "label": ["a", None]}, "row 1 has no label"),
        ({"image": [picture] * 2, "label": ["a", "a"]}, "one class"),
        ({"image": [picture] * 2, "label": [0.5, 1.5]}, "holds float, no labels"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 2, "label": ["a", "b"]}, "names files instead"),
    ):
        with pytest.raises(UserError, match=told):
            read_split(save(**columns), "train")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        read_split(save(image=[picture] * 2, label=["a", "b"]), "val")
    (tmp_path / "table" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be loaded"):
        read_split(f"hf:{tmp_path / 'table'}", "train")
    (tmp_path / "table" / "train.parquet").unlink()
    with pytest.raises(UserError, match="no parquet or arrow files"):
        read_split(f"hf:{tmp_path / 'table'}", "train")
    with pytest.raises(UserError, match="no such folder"):
        read_split(f"hf:{tmp_path / 'nowhere'}", "train")


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^data: hf:nobody/nothing cannot be loaded: [^\n]+$"):
        read_split("hf:nobody/nothing", "train")
    with pytest.raises(UserError, match="names no data set"):
        read_split("hf:", "train")


def write_mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 6), ("t10k", 4)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + pixels.tobytes())
        labels = bytes(range(count))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)


def test_torchvision_sets_in_memory_and_in_files(data: Path, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    train, val = read_splits(f"torchvision:MNIST@{tmp_path}", "train", "val")
    assert (len(train), len(val), len(train.classes)) == (6, 4, 10)
    with train.open(0) as image:
        assert image.size == (28, 28)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.store.size(0) > 28 * 28
    wnids = ("n01440764", "n02102040", "n03888257")
    for split in ("train", "val"):
        for folder, wnid in zip(sorted((data / split).iterdir()), wnids, strict=True):
            target = tmp_path / "imagenette2" / split / wnid
            target.mkdir(parents=True)
            for path in folder.iterdir():
                Image.open(path).save(target / f"{path.stem}.jpeg")
    train, _ = read_splits(f"torchvision:Imagenette@{tmp_path}", "train", "val")
    assert train.classes[0].startswith("tench")
    assert isinstance(train.store.open(0), str)
    assert not open_data(f"torchvision:MNIST@{tmp_path}").has("unlabelled")


def test_torchvision_refuses_what_it_cannot_vouch_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'CIFAR10'"):
        read_split("torchvision:CIFAR", "train")
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        read_split(f"torchvision:CIFAR10@{tmp_path}", "dev")
    (tmp_path / "cifar-10-batches-py").mkdir()
    ran = tmp_path / "ran"
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(ran))
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", lambda *_args, **_kwargs: None)
    with pytest.raises(UserError, match="cannot be downloaded: Dataset not found or corrupted"):
        read_split(f"torchvision:CIFAR10@{tmp_path}", "train")
    assert not ran.exists()


def by_class(labels: dict[str, str]) -> Callable[[Path], str]:
    return lambda path: labels[path.parent.name]


def test_classes_that_are_called_by_numbers_are_not_merged(data: Path, tmp_path: Path) -> None:
    paths = images_of(data, "train")
    names = ("blue", "green", "red")
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    for texts in ("012", "123"):  # indices, and names
        label = by_class(dict(zip(names, texts, strict=True)))
        write_tar(tmp_path / "train-0.tar", samples(paths, label))
        split = read_split(tmp_path, "train")
        assert (split.classes, split.labels.tolist()) == (("1", "2", "3"), [0] * 4 + [1] * 4 + [2] * 4)
    write_tar(tmp_path / "train-0.tar", samples(paths, lambda p: "1" if p.parent.name == "red" else "2"))
    with pytest.raises(UserError, match=r"'[12]' is a class's name and another one's index"):
        read_split(tmp_path, "train")


def test_braces_behind_a_urls_path_are_refused() -> None:
    for pattern, name in (("get?f={split}-0.tar", "train"), ("{split}.tar?f={0..1}", "train"), ("{split}", "x?f=1")):
        with pytest.raises(UserError, match=r"not after \? or #|without \? and #"):
            read_split(f"http://127.0.0.1:9/{pattern}", name)


def test_a_pattern_of_too_many_words_is_refused() -> None:
    with pytest.raises(UserError, match="more than"):
        read_split("/nowhere/{split}-" + "{a,b}" * 40 + ".tar", "train")


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
    with pytest.raises(UserError, match="no regular file"):
        read_split(tmp_path, "train")


def save_table(file: Path, pictures: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": each, "path": None} for each in pictures], "label": [0] * len(labels)}
    table = datasets.Dataset.from_dict(rows, features=kinds).data.table
    column = pa.array(labels, pa.int64())
    pq.write_table(table.set_column(1, "label", column).replace_schema_metadata(table.schema.metadata), file)


def test_indices_of_no_class_are_refused_and_of_any_taken(data: Path, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in images_of(data, "train")[:2]]
    for wrong in (-2, 3):
        save_table(tmp_path / str(wrong) / "train.parquet", pictures, [0, wrong], "abc")
        with pytest.raises(UserError, match=f"images of {wrong}, which is none of its classes"):
            read_split(f"hf:{tmp_path}/{wrong}", "train")
    save_table(tmp_path / "t" / "train.parquet", pictures, [0, 1], "123")
    assert read_split(f"hf:{tmp_path / 't'}", "train").labels.tolist() == [0, 1]


def test_the_files_of_a_table_are_told_apart(data: Path, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in images_of(data, "train")[:6]]
    for position, name in enumerate(("hub/mnist/train-0", "hub/mnist/test-0", "spark/train/part-0", "spark/test/part-0",
                                   "two/a/train-0", "two/a/test-0", "two/b/train-0", "two/b/test-0")):  # fmt: skip
        number = position % 2
        save_table(tmp_path / f"{name}.parquet", pictures[2 * number :][: 2 + number], [0, 1, 0][: 2 + number], "ab")
    for folder in ("hub", "spark"):
        train, test = read_splits(f"hf:{tmp_path / folder}", "train", "test")
        assert (len(train), len(test)) == (2, 3)
        assert not set(train.store.names) & set(test.store.names), "a name says of which table"
        shutil.copytree(tmp_path / folder, tmp_path / "copy" / folder)
        assert read_split(f"hf:{tmp_path / 'copy' / folder}", "train").fingerprint == train.fingerprint
    with pytest.raises(UserError, match=r"'t[a-z]*' is both in"):
        read_split(f"hf:{tmp_path / 'two'}", "train")


def test_columns_of_numbers_are_no_images(tmp_path: Path) -> None:
    for number, values in enumerate(([1, 2], [[1, 2], [3, 4]])):
        (tmp_path / str(number)).mkdir()
        rows = {"image": values, "label": ["a", "b"]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / str(number) / "train.parquet")
        with pytest.raises(UserError, match="'image' holds no image files"):
            read_split(f"hf:{tmp_path}/{number}", "train")


def test_shards_join_a_folder_named_from_here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(data / "unlabelled-0.tar", [("a.png", images_of(data, "train")[0].read_bytes())])
    monkeypatch.chdir(tmp_path)
    assert len(join(read_split("data", "train"), read_unlabelled("data", "unlabelled"))) == 13


def test_a_path_that_no_file_can_have_is_refused(data: Path) -> None:
    (data / "list.jsonl").write_text('{"path": "a\\ud800.png", "label": "a", "split": "train"}\n')
    with pytest.raises(UserError, match="line 1 names"):
        read_split(data / "list.jsonl", "train")


def test_evaluation_takes_the_order_of_the_weights_classes(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "t" / "val" / "0.tar", samples(images_of(data, "val")))
    (tmp_path / "t" / "val" / "classes.txt").write_text("red\nblue\ngreen\n")
    accuracies = [
        json.loads(cli("evaluate", teacher_file, "--data", place, "--workers", "0", "--json").out)["top1"]
        for place in (data, tmp_path / "t")
    ]
    assert accuracies[0] == accuracies[1]


def test_an_image_folder_comes_before_stray_shards(data: Path, tmp_path: Path) -> None:
    expected = read_split(data, "train")
    for stray in ("train-backup.tar", "train-0.tar", "train/n01440764.tar"):
        write_tar(data / stray, samples(images_of(data, "val")))
        assert content(read_split(data, "train")) == content(expected), stray
    write_shards(data, tmp_path / "shards")
    write_tar(tmp_path / "shards" / "train-extra-0.tar", samples(images_of(data, "val")))
    assert len(read_split(tmp_path / "shards", "train")) == 12


def test_a_damaged_torchvision_set_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for wrong in (b"junk", struct.pack(">2i", 0x801, 6), struct.pack(">2i", 0x101, 6) + bytes(6), b""):
        (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(wrong)
        with pytest.raises(UserError, match="damaged"):
            read_split(f"torchvision:MNIST@{tmp_path}", "train")


def test_names_of_classes_that_were_not_there_are_asked_for_once(
    everywhere: dict[str, str], server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_split(everywhere["URL"], "train")
    tries: list[str] = []

    def fail(url: str, timeout: float) -> None:
        tries.append(url)
        raise ConnectionError(str(timeout))

    monkeypatch.setattr("urllib.request.urlopen", fail)
    read_split(everywhere["URL"], "train")
    assert len(tries) == 1
