"""2,000 malformed images: each is read or counted as unreadable, in little time and memory; and odd folders."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scalekd.data import (
    Key,
    ReplayDataset,
    Split,
    evaluation_transform,
    read_split,
    read_unlabelled,
    training_transform,
)
from scalekd.data.loader import Sample
from scalekd.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
FLOATING = Image.fromarray(PIXELS[..., 0].astype(np.float32) / 255)
GREY16 = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
KINDS: list[tuple[Image.Image, str, dict[str, Any]]] = [
    *((PICTURE, name, {}) for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")),
    *(
        (PICTURE, name, {}) for name in ("ICO", "TGA", "PCX", "DDS", "EPS")
    ),  # of formats that are not asked for under this ending
    *((PICTURE.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGBA")),
    *((PICTURE.convert(mode), "TIFF", {}) for mode in ("I", "CMYK")),
    (FLOATING, "TIFF", {}),
    *((PICTURE, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
    (PICTURE.convert("CMYK"), "JPEG", {}),
    (
        PICTURE,
        "JPEG",
        {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"},
    ),
    (PICTURE.convert("P"), "PNG", {"transparency": b"\0\x10\x80"}),
    (PICTURE.convert("P"), "GIF", {"transparency": 3}),
    (PICTURE, "WEBP", {"lossless": True}),
    (PICTURE, "GIF", {"save_all": True, "append_images": [PICTURE] * 2}),
    (GREY16, "PNG", {}),
    (GREY16, "TIFF", {}),
]


def encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


WHOLE = [encoded(*kind) for kind in KINDS]
# What sizes, counts and offsets are often stored as, at their limits.
LIES = st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A picture's file cut short, with bits flipped or with a lie in its header."""
    content = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(content), draw(st.sampled_from([32, 100, 10_000]))) - 1)))
        match draw(st.sampled_from(["cut", "flip", "lie", "lie", "insert"])):
            case "cut":
                del content[place:]
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "lie":
                lie = draw(LIES)
                content[place : place + len(lie)] = lie
            case "insert":
                content[place:place] = draw(st.binary(max_size=8))
    return bytes(content)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what it thinks of spoilt files
        yield


TRANSFORMS = (training_transform(8), evaluation_transform(8))


@dataclass(frozen=True)
class Picture:
    """An image file that was listed when it was whole."""

    path: Path
    datasets: tuple[ReplayDataset, ...]

    def samples(self) -> list[Sample]:
        """What training and evaluation see of it now."""
        return [dataset[Key(0, 0)] for dataset in self.datasets]

    @property
    def unreadable(self) -> bool:
        seen = self.samples()
        if any(sample.image is None for sample in seen):
            assert [list(sample.corrupt) for sample in seen] == [[str(self.path)]] * len(seen)
            return True
        return False


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    root = tmp_path_factory.mktemp("images")
    path = root / "train" / "picture.png"
    path.parent.mkdir()
    PICTURE.save(path)
    (path.parent / "beside.txt").touch()  # an empty folder would be waited for
    split = read_unlabelled(root, "train")
    return Picture(path, tuple(ReplayDataset(split, transform) for transform in TRANSFORMS))


@settings(max_examples=2000)
@given(content=files())
def test_a_malformed_image_is_read_or_counted(picture: Picture, content: bytes) -> None:
    picture.path.write_bytes(content)
    for sample in picture.samples():
        if sample.image is None:
            assert list(sample.corrupt) == [str(picture.path)]
        else:
            assert sample.image.shape == (3, 8, 8)
            assert torch.isfinite(sample.image).all()


def test_the_whole_ones_are_read(picture: Picture) -> None:
    for content, (image, kind, _) in zip(WHOLE, KINDS, strict=True):
        picture.path.write_bytes(content)
        assert picture.unreadable == (kind in ("ICO", "TGA", "PCX", "DDS", "EPS")), (image.mode, kind)


def png(width: int, height: int) -> bytes:
    """A PNG file of one grey, which is small whatever size it claims; without pixels from 10^8 of them on."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 1) * height) if width * height < 10**8 else b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (2**31 - 1, 2**31 - 1), (2**31, 1), (2**32 - 1, 1), (10**6, 10**6)])
def test_absurd_dimensions_are_unreadable(picture: Picture, size: tuple[int, int]) -> None:
    picture.path.write_bytes(png(*size))
    assert picture.unreadable


def test_a_line_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(1, 100_000))
    (tmp_path / "1.png").write_bytes(png(100_000, 1))
    script = f"""
import resource
from pathlib import Path
from scalekd.data import Key, ReplayDataset, evaluation_transform, read_unlabelled, training_transform
split = read_unlabelled(Path({str(tmp_path)!r}), ".")
def read(side):
    for transform in (training_transform(side), evaluation_transform(side)):
        for index in (0, 1):
            assert ReplayDataset(split, transform)[Key(0, index)].image.shape == (3, side, side)
read(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read(224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert grown < 100_000, "kB; resized whole it would take 20 GB"


def test_a_long_image_is_cut_in_the_middle(picture: Picture) -> None:
    pixels = np.zeros((10, 1000, 3), dtype=np.uint8)
    pixels[:, 495:505] = 255
    Image.fromarray(pixels).save(picture.path)
    image = picture.samples()[1].image
    assert image is not None
    assert image.min() > 0.5


def test_postscript_is_not_interpreted(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a file was interpreted")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    picture.path.write_bytes(encoded(PICTURE, "EPS", {}))
    assert picture.unreadable


def test_what_is_no_file_is_unreadable_at_once(picture: Picture) -> None:
    makers: list[Callable[[Path], object]] = [
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
        Path.exists,  # nothing is there
    ]
    for make in makers:
        picture.path.unlink(missing_ok=True)
        make(picture.path)
        assert picture.unreadable
        if picture.path.is_dir():
            picture.path.rmdir()
    picture.path.touch()
    assert picture.unreadable


NAMES = st.one_of(
    st.sampled_from(
        ["[bold]x[red]", "\x1b[31m", "a\nb", "\t", " ", "..x", "-", "\u202e", "\U0001f600", "\udcff", "x.png", "CON"]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
)


@settings(max_examples=200)
@given(names=st.lists(NAMES.filter(lambda name: name not in (".", "..")), max_size=3, unique=True), data=st.data())
def test_folders_of_any_name_and_content_are_listed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("folders")
    for name in names:
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for file in data.draw(
            st.lists(st.sampled_from(["a.png", "b\n.jpg", "\udcff.png", "none.txt", ".png"]), unique=True)
        ):
            (folder / file).touch()
    for read in (read_split, read_unlabelled):
        split, refusal = listed(read, root)
        assert refusal.isprintable()
        if split is not None:
            assert len(split) > 0
            assert {int(label) for label in split.labels} <= {-1, *range(len(split.classes))}
            assert split.fingerprint.isprintable()


def listed(read: Callable[[Path, str], Split], root: Path) -> tuple[Split | None, str]:
    """A split, or the line that refuses it."""
    try:
        return read(root, "train"), ""
    except UserError as error:
        return None, str(error)
