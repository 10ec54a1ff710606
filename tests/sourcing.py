"""The images of `data` written for other sources."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scalekd.data import Split
from scalekd.data.sources import downloads

datasets = pytest.importorskip("datasets")


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


def content(split: Split) -> list[bytes]:
    opened = [split.store.open(index) for index in range(len(split))]
    return [Path(each).read_bytes() if isinstance(each, str) else each.read() for each in opened]
