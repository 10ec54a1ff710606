"""Hugging Face tables and torchvision data sets: how they are read, and which are refused, in one line."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sourcing import (
    caches,  # noqa: F401  # a fixture of every test here
    images_of,
)

from scalekd.data import open_data, read_split, read_splits
from scalekd.errors import UserError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


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
        ({"image": [picture] * 2, "label": [0.5, 1.5]}, "holds 0.5, neither text"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 2, "label": ["a", "b"]}, "holds paths of files instead"),
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
        with pytest.raises(UserError, match=f"images of {wrong}, which is not one of its classes"):
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
        with pytest.raises(UserError, match=r"'image' holds .* instead of image files"):
            read_split(f"hf:{tmp_path}/{number}", "train")


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


def test_a_damaged_torchvision_set_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for wrong in (b"junk", struct.pack(">2i", 0x801, 6), struct.pack(">2i", 0x101, 6) + bytes(6), b""):
        (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(wrong)
        with pytest.raises(UserError, match="damaged"):
            read_split(f"torchvision:MNIST@{tmp_path}", "train")
