"""Images stored rotated or mirrored are read as viewers show them, by every reader and in every format."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from scalekd.data import Split, evaluation_transform, read_split, seeded, training_transform
from scalekd.data.decoding import open_image, read, read_crop
from scalekd.data.orientation import AS_STORED, Turn, stored_box, turned, turned_size
from scalekd.data.sources import read_unlabelled
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.runs.folder import RunFolder
from scalekd.tasks.detection.coco import AnnotatedImage
from scalekd.tasks.detection.data import read_annotated
from scalekd.tasks.segmentation.values import read_values

EVERY = range(1, 9)
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
# The inverse of what a viewer does: from the image as shown to the pixels that a file of this orientation stores.
STORE: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda shown: shown.copy(),
    2: lambda shown: shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda shown: shown.transpose(Image.Transpose.ROTATE_180),
    4: lambda shown: shown.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda shown: shown.transpose(Image.Transpose.TRANSPOSE),
    6: lambda shown: shown.transpose(Image.Transpose.ROTATE_90),
    7: lambda shown: shown.transpose(Image.Transpose.TRANSVERSE),
    8: lambda shown: shown.transpose(Image.Transpose.ROTATE_270),
}


def picture(width: int, height: int, block: int = 1) -> Image.Image:
    """Noise in blocks: with blocks of 8, JPEG compresses them alike in every orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // block, width // block, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(block, 0).repeat(block, 1))


def stored(shown: Image.Image, orientation: int, kind: str = "PNG", **options: Any) -> bytes:
    """A file that stores an image rotated or mirrored, with the EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    STORE[orientation](shown).save(file, kind, exif=exif, **options)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert ImageOps.exif_transpose(image).size == shown.size, "a viewer shows another picture"
    return file.getvalue()


def read_whole(content: bytes) -> Tensor:
    with open_image(lambda: io.BytesIO(content)) as image:
        pixels = read(image)
        assert (image.width, image.height) == (pixels.shape[2], pixels.shape[1])
        return pixels


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", EVERY)
def test_a_picture_is_read_upright(orientation: int, kind: str) -> None:
    shown = picture(23, 14)
    content = stored(shown, orientation, kind, **LOSSLESS[kind])
    assert torch.equal(read_whole(content), F.pil_to_tensor(shown))


@pytest.mark.parametrize("orientation", EVERY)
@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "MPO"])
def test_a_lossy_picture_is_read_upright(orientation: int, kind: str) -> None:
    shown = picture(48, 32, block=16)
    content = stored(shown, orientation, kind, quality=100)
    assert (read_whole(content).float() - F.pil_to_tensor(shown).float()).abs().mean() < 6


@pytest.mark.parametrize("orientation", EVERY)
@pytest.mark.parametrize("side", [8, 40])
def test_a_crop_is_of_the_upright_picture_however_it_is_decoded(orientation: int, side: int) -> None:
    shown, box = picture(320, 192, block=8), (24, 40, 280, 168)
    with open_image(lambda: io.BytesIO(stored(shown, orientation, "JPEG", quality=100, subsampling=0))) as image:
        assert image.size == (320, 192)
        crop = read_crop(image, box, side).float()
        assert (image.stored.size in ((320, 192), (192, 320))) == (side == 40), "the smaller one is of a reduced image"
    with open_image(lambda: io.BytesIO(stored(shown, 1, "JPEG", quality=100, subsampling=0))) as image:
        expected = read_crop(image, box, side).float()
    assert (crop - expected).abs().mean() < 1
    assert expected.std() > 20


@pytest.mark.parametrize("orientation", EVERY)
def test_training_and_evaluation_see_the_upright_picture(orientation: int) -> None:
    shown = picture(90, 60)
    for transform in (training_transform(24, rand_augment="rand-m7-mstd0.5-inc1"), evaluation_transform(24)):
        seen = []
        for each in (1, orientation):
            with open_image(partial(io.BytesIO, stored(shown, each))) as image, seeded(3):
                seen.append(transform(image))
        assert (seen[0] - seen[1]).abs().max() <= 3 / 255


def test_boxes_follow_the_picture() -> None:
    size, (left, upper, right, lower) = (23, 14), (2, 3, 11, 9)
    shown = torch.arange(23 * 14).reshape(14, 23)
    for turn in (Turn(*(bool(bits & bit) for bit in (1, 2, 4))) for bits in range(8)):
        rows = list(range(14))[::-1] if turn.rows_reversed else list(range(14))
        columns = list(range(23))[::-1] if turn.columns_reversed else list(range(23))
        pixels = shown[rows][:, columns]
        pixels = pixels.T if turn.transposed else pixels
        assert torch.equal(turned(pixels, turn), shown)
        assert tuple(pixels.shape[::-1]) == turned_size(size, turn)
        x, y, x2, y2 = stored_box((left, upper, right, lower), size, turn)
        assert torch.equal(turned(pixels[y:y2, x:x2], turn), shown[upper:lower, left:right])


def test_an_orientation_in_xmp_counts_as_for_viewers() -> None:
    shown, file = picture(23, 14), io.BytesIO()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    STORE[6](shown).save(file, "WEBP", lossless=True, xmp=xmp)
    assert torch.equal(read_whole(file.getvalue()), F.pil_to_tensor(shown))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_what_is_no_orientation_changes_nothing(orientation: int) -> None:
    shown, exif, file = picture(23, 14), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    shown.save(file, "PNG", exif=exif)
    assert torch.equal(read_whole(file.getvalue()), F.pil_to_tensor(shown))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"no EXIF", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_a_damaged_exif_block_leaves_the_picture_readable(exif: bytes) -> None:
    shown, file = picture(23, 14), io.BytesIO()
    shown.save(file, "JPEG", exif=b"Exif\0\0" + exif, quality=95)
    with open_image(lambda: io.BytesIO(file.getvalue())) as image:
        assert (image.turn, image.size) == (AS_STORED, (23, 14))
        assert read(image).shape == (3, 14, 23)


def labelled_folder(root: Path, files: dict[str, bytes]) -> Split:
    for name, content in files.items():
        path = root / "train" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return read_split(root, "train")


def listed(root: Path, files: dict[str, bytes]) -> Split:
    rows = [f"train/{name},{name.partition('/')[0]},train\n" for name in files]
    labelled_folder(root, files)
    (root / "list.csv").write_text("path,label,split\n" + "".join(rows))
    return read_split(root / "list.csv", "train")


def in_shards(root: Path, files: dict[str, bytes]) -> Split:
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for name, content in files.items():
            label = name.partition("/")[0].encode()
            for member, data in ((name, content), (name.replace(".png", ".cls"), label)):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return read_split(root, "train")


def in_a_table(root: Path, files: dict[str, bytes]) -> Split:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {
        "image": [{"bytes": content, "path": None} for content in files.values()],
        "label": [name.partition("/")[0] for name in files],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train-00000.parquet")
    return read_split(f"hf:{root}", "train")


def unlabelled(root: Path, files: dict[str, bytes]) -> Split:
    labelled_folder(root, files)
    return read_unlabelled(root, "train")


@pytest.mark.parametrize("keep", [labelled_folder, listed, in_shards, in_a_table, unlabelled])
def test_every_source_gives_upright_pictures(tmp_path: Path, keep: Callable[[Path, dict[str, bytes]], Split]) -> None:
    shown = picture(23, 14)
    split = keep(tmp_path, {"a/x.png": stored(shown, 6), "b/y.png": stored(shown, 3)})
    for index in range(2):
        with split.open(index) as image:
            assert torch.equal(read(image), F.pil_to_tensor(shown))


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_detection_compares_the_upright_size_with_the_annotations(tmp_path: Path, orientation: int) -> None:
    shown, path = picture(23, 14), tmp_path / "x.png"
    path.write_bytes(stored(shown, orientation))
    assert torch.equal(read_annotated(AnnotatedImage(1, path, width=23, height=14)), F.pil_to_tensor(shown))


@pytest.mark.parametrize("orientation", [4, 6, 8])
def test_the_numbers_of_a_label_image_are_upright(tmp_path: Path, orientation: int) -> None:
    numbers = np.arange(23 * 14, dtype=np.uint16).reshape(14, 23)
    (tmp_path / "x.png").write_bytes(stored(Image.fromarray(numbers), orientation))
    assert np.array_equal(read_values(tmp_path / "x.png", 1000, as_colours=False).numbers, numbers)


def test_a_run_of_a_version_that_read_pictures_otherwise_is_not_resumed(tmp_path: Path) -> None:
    run, recipe = RunFolder(tmp_path), load(None, {"data": "images"})
    run.prepare(recipe, {"training data": "x"}, resume=False)
    run.prepare(recipe, {"training data": "x"}, resume=True)
    run.inputs.write_text('{"training data": "x"}')
    with pytest.raises(UserError, match="decodes images differently"):
        run.prepare(recipe, {"training data": "x"}, resume=True)
