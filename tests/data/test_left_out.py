"""Which files of a folder or shard are images; other files are counted, and hidden folders are not classes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

from scalekd.data import Split, evaluation_transform, read_split, read_splits
from scalekd.data.decoding import UnreadableImageError, read
from scalekd.data.endings import is_image
from scalekd.data.skipped_files import left_out
from scalekd.data.sources import read_unlabelled
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.tasks.distill.inputs import check_output


def save(path: Path, kind: str | None = None, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


def names(split: Split) -> list[str]:
    return list(split.store.names)


def folder(root: Path) -> Path:
    """Two classes of one image each."""
    save(root / "train" / "cat" / "0.png", seed=1)
    save(root / "train" / "dog" / "0.png", seed=2)
    return root


READ = {
    "a.avif": None, "b.gif": None, "c.jfif": "JPEG", "d.jpe": "JPEG", "e.JPG.jpeg": "JPEG", "f.JP2": "JPEG2000",
    "g.TIFF": "TIFF", "h.2024-05-01.png": None, "i.tga": "TGA", "j.ico": "ICO", "k.pcx": "PCX", "l.qoi": "QOI",
    "m.apng": "PNG", "n.dib": "DIB", "o.mpo": "MPO", "p.sgi": "SGI", "q.dds": "DDS",
}  # fmt: skip


def test_every_format_that_pil_reads_safely_is_read(tmp_path: Path) -> None:
    folder(tmp_path)
    for name, kind in READ.items():
        save(tmp_path / "train" / "cat" / name, kind)
    split = read_split(tmp_path, "train")
    assert [Path(name).name for name in names(split)[:-1]] == sorted([*READ, "0.png"])
    assert not split.skipped.left_out
    for index in range(len(split)):
        with split.open(index) as image:
            assert evaluation_transform(16)(image).shape == (3, 16, 16), split.locate(index)


def test_heic_is_read_where_its_library_is(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = Image.fromarray(np.full((40, 64, 3), 90, np.uint8))
    shown.paste((250, 20, 20), (0, 0, 32, 40))
    shown.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "train" / "cat" / "1.HEIC", "HEIF", exif=exif.tobytes())
    split = read_split(tmp_path, "train")
    with split.open(1) as image:
        assert image.size == (64, 40)
        assert read(image)[:, 20, 8].tolist() == pytest.approx([250, 20, 20], abs=12)


def test_heic_is_named_with_what_it_needs_where_its_library_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("endings", "skipped_files"):
        monkeypatch.setattr(f"scalekd.data.{module}.has_heif", lambda: False)
    monkeypatch.setattr("scalekd.data.endings._heif_formats", lambda: ())
    folder(tmp_path)
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "train" / "cat" / "1.heic").write_bytes(start)
    (tmp_path / "train" / "cat" / "2.jpg").write_bytes(start)
    split = read_split(tmp_path, "train")
    assert names(split) == ["cat/0.png", "cat/2.jpg", "dog/0.png"]
    (line,) = left_out({"train": split.skipped})
    assert line == (
        "left out  train: 1 file (1 .heic) left out, for example cat/1.heic; .heic is read with pillow-heif; "
        "pip install '.[heif]'"
    )
    with pytest.raises(UnreadableImageError) as raised, split.open(1):
        pass
    assert ".[heif]" in raised.value.reason


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    folder(tmp_path)
    for name in ("cat/a.txt", "cat/b.TXT", "dog/c.eps", "dog/more/d", "cat/e.jpg_large"):
        path = tmp_path / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    save(tmp_path / "train" / "stray.jpg")
    for split in (read_split(tmp_path, "train"), read_split(tmp_path, "train")):
        assert split.skipped.left_out == {
            ".txt": (2, "cat/a.txt"), ".eps": (1, "dog/c.eps"), "without an ending": (1, "dog/more/d"),
            ".jpg_large": (1, "cat/e.jpg_large"), "outside the class folders": (1, "stray.jpg"),
        }  # fmt: skip
        assert split.skipped.described().startswith("6 files (2 .txt, ")
    assert names(read_unlabelled(tmp_path, "train")) == ["cat/0.png", "dog/0.png", "stray.jpg"]


HIDDEN = (
    "cat/._0.png", "._dog/x.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/._0.png", "cat/.DS_Store",
    "cat/Thumbs.db", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "dog/.thumbnails/0.png", "dog/__MACOSX/0.png",
)  # fmt: skip


def test_hidden_files_and_folders_are_neither_images_nor_classes(tmp_path: Path) -> None:
    folder(tmp_path)
    for name in HIDDEN:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for split in (read_split(tmp_path, "train"), read_unlabelled(tmp_path, "train")):
        assert names(split) == ["cat/0.png", "dog/0.png"]
        assert not split.skipped.left_out
        assert sum(count for count, _ in split.skipped.hidden.values()) == 9
    assert read_split(tmp_path, "train").classes == ("cat", "dog")


def test_an_empty_class_is_refused_with_what_was_in_it(tmp_path: Path) -> None:
    (folder(tmp_path) / "train" / "fish").mkdir()
    (tmp_path / "train" / "fish" / "a.cr2").touch()
    with pytest.raises(UserError, match=r"no images in .*/fish \(1 file \(1 \.cr2\) left out, for example fish/a\.cr2"):
        read_splits(tmp_path, "train", "train")


def test_a_rare_format_is_read_under_its_own_ending_only(tmp_path: Path) -> None:
    folder(tmp_path)
    for name, kind in (("1.png", "TGA"), ("2.jpg", "ICO"), ("3.png", "PCX"), ("4.jpg", "AVIF"), ("5.png", "JPEG2000")):
        save(tmp_path / "train" / "cat" / name, kind)
    split = read_split(tmp_path, "train")
    readable = []
    for index in range(6):
        try:
            with split.open(index) as image:
                readable.append(len(read(image)) == 3)
        except UnreadableImageError:
            readable.append(False)
    assert readable == [True, False, False, False, True, True]
    assert not is_image("x.eps")


def shard(root: Path, members: dict[str, bytes | None]) -> Split:
    """A shard of these members; None stands for an image."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for name, content in members.items():
            data = picture.getvalue() if content is None else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return read_split(root, "train")


DOTTED: dict[str, tuple[dict[str, bytes | None], dict[str, str]]] = {
    "dates": (
        {"a.2024-05-01.jpg": None, "a.2024-05-01.cls": b"x", "a.2024-05-02.jpg": None, "a.2024-05-02.cls": b"y"},
        {"a.2024-05-01.jpg": "x", "a.2024-05-02.jpg": "y"},
    ),
    "cameras": (
        {"c/a.01.jpg": None, "c/a.01.json": b'{"label": "x"}', "c/a.02.jpg": None, "c/a.02.cls": b"y"},
        {"c/a.01.jpg": "x", "c/a.02.jpg": "y"},
    ),
    "double endings": (
        {"a.JPG.jpeg": None, "a.cls": b"x", "b.jpg": None, "b.cls": b"y"}, {"a.JPG.jpeg": "x", "b.jpg": "y"}
    ),
    "a field's name": (
        {"a.image.png": None, "a.cls": b"x", "b.image.png": None, "b.cls": b"y"},
        {"a.image.png": "x", "b.image.png": "y"},
    ),
    "plain beside dotted": (
        {"a.jpg": None, "a.cls": b"x", "a.v2.jpg": None, "a.v2.cls": b"y"}, {"a.jpg": "x", "a.v2.jpg": "y"}
    ),
    "further fields": (
        {"a.jpg": None, "a.seg.png": None, "a.cls": b"x", "b.jpg": None, "b.cls": b"y", "a.box.json": b"[1]"},
        {"a.jpg": "x", "b.jpg": "y"},
    ),
    "mac companions": (
        {"./a.jpg": None, "./a.cls": b"x", "./._a.jpg": b"", "__MACOSX/._a.jpg": b"", "./b.jpg": None, "./b.cls": b"y"},
        {"./a.jpg": "x", "./b.jpg": "y"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOTTED)
def test_members_with_more_dots_are_read_with_their_labels(tmp_path: Path, kind: str) -> None:
    members, expected = DOTTED[kind]
    for split in (shard(tmp_path, members), read_split(tmp_path, "train")):  # listed, then read from the index
        found = [name.removeprefix("train-0.tar/") for name in names(split)]
        assert dict(zip(found, (split.classes[label] for label in split.labels), strict=True)) == expected
        assert bool(split.skipped.left_out) == (kind == "further fields")
        assert bool(split.skipped.hidden) == (kind == "mac companions")


def test_companions_of_shards_and_tables_are_not_looked_at(tmp_path: Path) -> None:
    shard(tmp_path, {"a.jpg": None, "a.cls": b"x", "b.jpg": None, "b.cls": b"y"})
    (tmp_path / "train").mkdir()
    (tmp_path / "train-0.tar").rename(tmp_path / "train" / "0.tar")
    (tmp_path / "train" / "._0.tar").write_bytes(b"\0\5\x16\7")
    assert len(read_split(tmp_path, "train")) == 2
    datasets = pytest.importorskip("datasets")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    rows = {"image": [{"bytes": picture.getvalue(), "path": None}] * 2, "label": ["x", "y"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = tmp_path / "table"
    table.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(table / "train-00000.parquet")
    (table / "._train-00000.parquet").write_bytes(b"\0\5\x16\7")
    assert len(read_split(f"hf:{table}", "train")) == 2


def test_two_images_of_one_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are images of the same sample"):
        shard(tmp_path, {"a.left.jpg": None, "a.right.jpg": None, "a.cls": b"x"})


def test_shards_count_what_they_leave_out(tmp_path: Path) -> None:
    split = shard(tmp_path, {"a.jpg": None, "a.cls": b"x", "a.txt": b"", "b.jpg": None, "b.cls": b"y", "b.npy": b""})
    assert split.skipped.left_out == {".txt": (1, "a.txt"), ".npy": (1, "b.npy")}


@pytest.mark.parametrize("output", ["train/run", "train/cat/run", "val/run", "unlabelled/a/b", "train"])
def test_what_is_written_must_not_become_a_class(tmp_path: Path, output: str) -> None:
    for split in ("train", "val", "unlabelled"):
        (tmp_path / split).mkdir()
    recipe = load(None, {"data": str(tmp_path)})
    with pytest.raises(UserError, match=f"output: .*{output} is in .*use a folder elsewhere"):
        check_output(recipe, tmp_path / output)
    for fine in ("runs/a", "train-run", "../elsewhere"):
        check_output(recipe, tmp_path / fine)
    with pytest.raises(UserError, match="cache: "):
        check_output(load(None, {"data": str(tmp_path), "train_split": "."}), tmp_path / "caches", "cache")


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder with every kind of other file that users have."""
    for number, (split, label) in enumerate((s, c) for s in ("train", "val") for c in ("cat", "dog")):
        for index in range(3):
            save(tmp_path / split / label / f"{index}.png", seed=10 * number + index)
    train = tmp_path / "train"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), (9, 99, 199)).save(train / "cat" / "turned.jpg", exif=exif)
    Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)).save(train / "cat" / "float.tif")
    Image.fromarray(np.linspace(0, 9, 600, dtype=np.float32).reshape(20, 30)).save(train / "cat" / "beyond.tif")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(train / "dog" / "dark.png")
    (train / "dog" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff")
    (train / "dog" / "notes.txt").touch()
    (train / "dog" / "._0.png").touch()
    (train / ".ipynb_checkpoints").mkdir()
    (train / "fish").mkdir()
    (train / "dog" / "same.png").write_bytes((train / "dog" / "0.png").read_bytes())
    (tmp_path / "val" / "dog" / "leaked.png").write_bytes((train / "cat" / "0.png").read_bytes())
    return tmp_path


def test_a_messy_folder_is_told_in_one_screen(cli: Cli, messy: Path) -> None:
    outcome = cli("data", "check", messy, "--workers", "0")
    assert outcome.code == 1, outcome.err
    for part in (
        "F 1", "I;16 1", "mode      F: floating-point grey, read if all values are from 0 (black) to 1 (white)",
        "found from 0 to 599: these are almost black", "left out  train: 1 file (1 .txt)", "dog/notes.txt",
        "hidden    train: 2 hidden entries", ".ipynb_checkpoints", "empty     train: no images in fish",
        "classes   fish in train only", "beyond.tif (its pixels are floating-point values from 0 to 9", "corrupt.jpg",
        "same.png", "leaked.png",
    ):  # fmt: skip
        assert part in outcome.out, part
    assert len(outcome.out.splitlines()) < 45
    report = json.loads(cli("data", "check", messy, "--workers", "0", "--json").out)
    train = report["splits"]["train"]
    assert (train["turned"], train["empty"], train["left_out"][".txt"]["count"]) == (1, ["fish"], 1)
    assert report["classes_differ"] == ["fish in train only"]
    assert set(train["reasons"]) == {str(messy / "train/cat/beyond.tif"), str(messy / "train/dog/corrupt.jpg")}


def test_a_split_that_is_both_is_a_leak(cli: Cli, data: Path) -> None:
    outcome = cli("data", "check", data, "--val-split", "train", "--workers", "0")
    assert outcome.code == 1
    assert "leak      training and validation images are the same split" in outcome.out
    outcome = cli("data", "check", data, "--val-split", "./train", "--workers", "0", "--json")
    assert (outcome.code, len(json.loads(outcome.out)["leaks"])) == (1, 12)


def test_commands_tell_what_they_leave_out(cli: Cli, data: Path, tmp_path: Path) -> None:
    (data / "train" / "red" / "a.cr2").touch()
    (data / "val" / "red" / "._0.png").touch()
    (data / "val" / "red" / "b.txt").touch()
    keys = ("--data", data, "--method", "none", "--student", "resnet10t", "--resolution", "32", "--epochs", "1")
    outcome = cli("distill", *keys, "--batch", "6", "--workers", "0", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "left out  train: 1 file (1 .cr2) left out, for example red/a.cr2" in outcome.err
    assert "12 training images" in outcome.err
    assert "left out  val: 1 file (1 .txt)" in outcome.err
    outcome = cli("evaluate", tmp_path / "run", "--workers", "0")
    assert "left out  val: 1 file (1 .txt)" in outcome.err
    outcome = cli("predict", tmp_path / "run", data / "val", "--workers", "0")
    assert outcome.code == 0, "hidden files are skipped"
    assert "1 file (1 .txt) left out" in outcome.err
    cli("distill", *keys, "--output", data / "train" / "run").refused("output", "use a folder elsewhere")
    assert not (data / "train" / "run").exists()
