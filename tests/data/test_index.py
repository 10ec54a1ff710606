"""The index of an image folder lists what torchvision lists, and is used only while it is certainly valid."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data import read_split
from scalekd.data.index import Listing, list_classes, list_unlabelled

LIST = {"classes": list_classes, "unlabelled": list_unlabelled}
SOURCES = sorted(LIST)


@contextmanager
def later() -> Iterator[pytest.MonkeyPatch]:
    """Let a minute pass: what was written before can be distinguished from what is written now."""
    now = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalekd.data.index.time.time_ns", lambda: now() + 60 * 10**9)
        yield patch


@pytest.fixture
def settled() -> Iterator[pytest.MonkeyPatch]:
    with later() as patch:
        yield patch


def refuse(path: object) -> NoReturn:
    raise AssertionError(f"{path} was listed")


def content(listing: Listing) -> tuple[list[str], list[int], tuple[str, ...]]:
    return list(listing.names), listing.labels.tolist(), listing.classes


def indices() -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"], "scalekd", "index").glob("*"))


def expected(root: Path, source: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The images that torchvision lists, or a walk over all files, without hidden ones."""
    if source == "classes":
        there = ImageFolder(str(root), allow_empty=True)
        classes = [name for name in there.classes if not name.startswith(".")]
        names = [name for path, _ in there.samples if "/." not in f"/{(name := os.path.relpath(path, root))}"]
        return names, [classes.index(name.partition("/")[0]) for name in names], tuple(classes)
    walked = [os.path.join(top, file) for top, _, files in os.walk(root, followlinks=True) for file in files]
    images = (os.path.relpath(path, root) for path in sorted(walked) if path.lower().endswith(IMG_EXTENSIONS))
    names = [name for name in images if "/." not in f"/{name}"]
    return names, [-1] * len(names), ()


NAME = st.sampled_from(
    ["a", "b", "a-b", "B", "a b", "é", "\U0001f431", "c.png", "[x]", "\udcff", "a\nb", "10", "9", ".h"]
)
IMAGE = st.builds(str.__add__, NAME, st.sampled_from([".png", ".PNG", ".jpeg", ".webp", ".txt", "", ".png.bak"]))
FILES = st.lists(st.tuples(st.lists(NAME, max_size=3), IMAGE), max_size=12)
LINKS = st.lists(st.tuples(NAME, IMAGE), max_size=2)


@settings(max_examples=60)
@given(files=FILES, links=LINKS)
def test_the_listing_is_torchvisions(files: list[tuple[list[str], str]], links: list[tuple[str, str]]) -> None:
    top = Path(tempfile.mkdtemp())
    for index, (folders, image) in enumerate([([], "no.png"), (["class"], "1.png"), *files]):
        path = top.joinpath("root", *folders, image)
        if not any(part.is_file() for part in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            (top / f"linked{index}").mkdir()
            (top / f"linked{index}" / image).touch()
    for index, (name, image) in enumerate(links):
        for link, target in (
            (name, f"linked{index}"),
            (f"class/{image}", f"linked{index}/{image}"),
            ("broken", "gone"),
        ):
            if not os.path.lexists(top / "root" / link):
                (top / "root" / link).symlink_to(top / target)
    with later():
        for source in SOURCES * 2:  # listed, then from the index
            assert content(LIST[source](top / "root")) == expected(top / "root", source)
    shutil.rmtree(top)


@pytest.mark.parametrize("source", SOURCES)
def test_what_did_not_change_is_not_listed_again(data: Path, settled: pytest.MonkeyPatch, source: str) -> None:
    first = content(LIST[source](data / "train"))
    settled.setattr("scalekd.data.index.os.scandir", refuse)
    assert content(LIST[source](data / "train")) == first == expected_from_memory(source)
    settled.chdir(data)
    assert content(LIST[source](Path("train"))) == first


def expected_from_memory(source: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    classes = ("blue", "green", "red")
    names = [f"{name}/{index}.png" for name in classes for index in range(4)]
    if source == "classes":
        return names, [label for label in range(3) for _ in range(4)], classes
    return names, [-1] * 12, ()


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image more": lambda root: (root / "red" / "9.png").touch(),
    "an image less": lambda root: (root / "red" / "3.png").unlink(),
    "an image renamed": lambda root: (root / "red" / "3.png").rename(root / "red" / "7.png"),
    "an image moved": lambda root: (root / "red" / "3.png").rename(root / "blue" / "7.png"),
    "a class more": lambda root: shutil.copytree(root / "red", root / "rot"),
    "a class less": lambda root: shutil.rmtree(root / "green"),
    "a folder in a folder": lambda root: shutil.copytree(root / "red", root / "blue" / "more"),
    "an image in a linked folder": lambda root: (root.parent / "elsewhere" / "9.png").touch(),
    "a link's folder that comes back": lambda root: shutil.copytree(root / "red", root.parent / "gone"),
    "other images, times put back": lambda root: replace_keeping_times(root / "red"),
}


def replace_keeping_times(folder: Path) -> None:
    before = folder.stat()
    (folder / "3.png").rename(folder / "8.png")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(data: Path, settled: pytest.MonkeyPatch, change: str) -> None:
    root = data / "train"
    shutil.copytree(root / "red", data / "elsewhere")
    (root / "linked").symlink_to(data / "elsewhere")
    (root / "lost").symlink_to(data / "gone")
    before = {source: content(LIST[source](root)) for source in SOURCES}
    assert len(indices()) == 2
    CHANGES[change](root)
    for source in SOURCES:
        after = content(LIST[source](root))
        assert after == expected(root, source) != before[source]


def test_what_changed_just_now_is_not_trusted(data: Path) -> None:
    """No index is kept: a further change within a tick of the file system's clock would not be detected."""
    read_split(data, "train")
    assert not indices()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda raw: raw[:-40],
    "empty": lambda raw: raw[:0],
    "no index": lambda raw: b"{}" * len(raw),
    "a bit": lambda raw: raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_made_anew(
    data: Path,
    settled: pytest.MonkeyPatch,
    damage: str,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    listed = content(list_classes(data / "train"))
    (index,) = indices()
    whole = index.read_bytes()
    index.write_bytes(DAMAGE[damage](whole))
    assert content(list_classes(data / "train")) == listed
    assert index.read_bytes() == whole
    assert not recwarn
    assert capfd.readouterr() == ("", "")


def test_without_a_place_for_it_there_is_a_line_and_no_index(
    data: Path,
    tmp_path: Path,
    settled: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for split in ("train", "val"):
        read_split(data, split)
    (line,) = caplog.messages
    assert line.startswith("warning: no index of the images is kept")
    assert str(tmp_path / "file") in line
    assert "\n" not in line


@pytest.mark.usefixtures("settled")
def test_processes_may_list_at_once(data: Path) -> None:
    def check() -> None:
        for _ in range(20):
            assert content(list_classes(data / "train")) == expected_from_memory("classes")
            for index in indices():
                index.unlink(missing_ok=True)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=check) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


@pytest.mark.parametrize("list_images", [list_classes, list_unlabelled])
def test_links_to_what_they_are_in_have_an_end(tmp_path: Path, list_images: Callable[[Path], Listing]) -> None:
    write_images(tmp_path / "train", 1)
    for number in range(3):
        (tmp_path / "train" / "red" / f"up{number}").symlink_to("..")
        (tmp_path / "train" / "blue" / f"here{number}").symlink_to(".")
    names = list_images(tmp_path / "train").names
    assert {os.path.realpath(tmp_path / "train" / name) for name in names} == set(
        map(os.path.realpath, (tmp_path / "train").glob("*/*.png"))
    )
    assert len(names) < 100
