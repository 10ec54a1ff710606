"""Every source gives the same images."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_RUN, Cli, write_images
from sourcing import (
    caches,  # noqa: F401  # a fixture of every test here
    content,
    images_of,
    samples,
    write_list,
    write_parquet,
    write_shards,
    write_tar,
)

from scalekd.data import join, read_label_free, read_split, read_splits, read_unlabelled
from scalekd.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `tmp_path` at a URL; also records the requested paths."""
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
        read_split(everywhere["URL"].replace("..01}", "..02}"), "train")
    assert server[1].count("/shards/train-02.tar") == 1, "what is not there is not asked for again"
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        read_split("http://127.0.0.1:9/{split}-0.tar", "train")
    with pytest.raises(UserError, match="http:// and https:// only"):
        read_split("s3://bucket/{split}-0.tar", "train")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"x" * 10, "990 more expected"), (None, "Remote end closed connection without response;")],
)
def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, answer: bytes | None, reason: str) -> None:
    tries = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tries.append(self.path)
            if answer is not None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        with pytest.raises(UserError, match=f"cannot be downloaded: .*{reason}"):
            read_split(f"http://127.0.0.1:{serving.server_port}/{{split}}.tar", "train")
        serving.shutdown()
        thread.join()
    assert len(tries) == 3
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [".lock"]


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


def test_shards_join_a_folder_named_from_here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(data / "unlabelled-0.tar", [("a.png", images_of(data, "train")[0].read_bytes())])
    monkeypatch.chdir(tmp_path)
    assert len(join(read_split("data", "train"), read_unlabelled("data", "unlabelled"))) == 13


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
