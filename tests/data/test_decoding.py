from __future__ import annotations

import pickle
import struct
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from scalekd.data import evaluation_transform, seeded, training_transform
from scalekd.data.decoding import UnreadableImageError, open_image, read_crop


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise like a photograph: amplitudes fall with frequency, and colours are mostly grey."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(1 / max(width, height))
    spectrum = np.fft.rfft2(generator.normal(size=(3, height, width))) / frequency
    pixels = np.fft.irfft2(spectrum, (height, width))
    pixels = pixels[:1] + 0.2 * pixels
    pixels = 45 * pixels / pixels.std() + np.array([120, 110, 95])[:, None, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def written(folder: Path, image: Image.Image) -> str:
    path = folder / "image.jpg"
    image.save(path, quality=90)
    return str(path)


def plain(path: str, box: tuple[int, int, int, int], side: int) -> torch.Tensor:
    """Decode the whole image, crop and resize it with PIL."""
    with Image.open(path) as image:
        resized = image.convert("RGB").crop(box).resize((side, side), Image.Resampling.BICUBIC)
    return 255 * torch.as_tensor(F.to_tensor(resized))


@pytest.mark.parametrize("box", [(3, 5, 199, 160), (40, 20, 70, 61), (0, 0, 240, 180)])
def test_a_crop_is_the_plain_one_but_for_rounding(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    path = written(tmp_path, photograph(240, 180))
    with open_image(lambda: path) as image:
        difference = (read_crop(image, box, 100).float() - plain(path, box, 100)).abs()
    assert difference.mean() < 0.3  # releases of PIL also differ among each other in which side they resize first
    assert difference.max() < 10


@pytest.mark.parametrize("shrink", [4, 9, 17])
def test_a_crop_decoded_at_reduced_size_has_the_plain_ones_statistics(tmp_path: Path, shrink: int) -> None:
    path = written(tmp_path, photograph(700, 600))
    side = 400 // shrink
    box = (101, 53, 101 + shrink * side + 1, 53 + shrink * side + 3)
    with open_image(lambda: path) as image:
        ours, expected = read_crop(image, box, side).float(), plain(path, box, side)
        assert image.stored.width < 700, "decoded in full"
    torch.testing.assert_close(ours.mean((1, 2)), expected.mean((1, 2)), rtol=0, atol=0.3)
    torch.testing.assert_close(ours.std((1, 2)), expected.std((1, 2)), rtol=0.02, atol=0)
    assert (ours - expected).abs().mean() < 1.5


def test_random_crops_are_timms(tmp_path: Path) -> None:
    from timm.data.transforms import RandomResizedCropAndInterpolation

    path = written(tmp_path, photograph(120, 90))
    for index in range(20):
        with seeded(0, index), Image.open(path) as image:
            expected = F.to_tensor(RandomResizedCropAndInterpolation(48, interpolation="bicubic")(image))
        with seeded(0, index), open_image(lambda: path) as image:
            assert (training_transform(48, flip=0)(image) - expected).abs().mean() < 0.3 / 255


def test_evaluation_is_torchvisions_but_for_rounding(tmp_path: Path) -> None:
    from torchvision import transforms

    path = written(tmp_path, photograph(150, 110))
    usual = [transforms.Resize(73, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(64)]
    with Image.open(path) as image:
        expected = F.to_tensor(transforms.Compose(usual)(image.convert("RGB")))
    with open_image(lambda: path) as image:
        difference = (evaluation_transform(64)(image) - expected).abs()
    assert difference.mean() < 0.3 / 255
    assert difference.max() < 10 / 255


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("side", [16, 200])
def test_a_jpeg_cut_short_is_unreadable_at_any_size(tmp_path: Path, kept: float, side: int) -> None:
    path = Path(written(tmp_path, photograph(240, 180)))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableImageError), open_image(lambda: str(path)) as image:
        read_crop(image, (0, 0, 240, 180), side)


def test_transforms_can_be_sent_to_workers_that_are_not_forked() -> None:
    for transform in (
        training_transform(24, rand_augment="rand-m7-mstd0.5-inc1", erasing=0.5),
        evaluation_transform(24),
    ):
        pickle.dumps(transform)


def png_claiming(width: int, height: int) -> bytes:
    """The start of a PNG file whose header claims that size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(20_000, 10_000), (13_378, 13_377), (65_536, 65_536), (2**30, 2**30)])
def test_what_claims_too_many_pixels_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    told = f"{size[0]} x {size[1]} pixels; max_pixels is 178956970"
    with pytest.raises(UnreadableImageError, match=told), open_image(lambda: BytesIO(png_claiming(*size))):
        pytest.fail("it was opened")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0), (2**31 - 1, 0), (2**32 - 1, 2**32 - 1), (10_000, 10_000)])
def test_absurd_sizes_make_an_image_unreadable(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImageError), open_image(lambda: BytesIO(png_claiming(*size))) as image:
        read_crop(image, (0, 0, *size), 8)


def test_the_limit_can_be_set_and_pils_is_left_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, photograph(40, 30))
    former = Image.MAX_IMAGE_PIXELS
    with open_image(lambda: path, 1200) as image:
        assert read_crop(image, (0, 0, 40, 30), 8).shape == (3, 8, 8)
    with (
        pytest.raises(UnreadableImageError, match="40 x 30 pixels; max_pixels is 1199"),
        open_image(lambda: path, 1199),
    ):
        pass
    with open_image(lambda: BytesIO(png_claiming(20_000, 10_000)), 10**9) as image:
        assert image.size == (20_000, 10_000)
    assert former == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 1)])
def test_absurdly_long_images_take_little_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    path = str(tmp_path / "long.png")
    Image.new("RGB", size, (255, 0, 0)).save(path)
    for transform in (evaluation_transform(224), training_transform(224)):
        with seeded(0), open_image(lambda: path) as image:
            assert transform(image).shape == (3, 224, 224)


def forbidden() -> str:
    raise PermissionError(13, "Permission denied")


def test_the_reason_why_a_file_cannot_be_read_is_its_own(tmp_path: Path) -> None:
    path = Path(written(tmp_path, photograph(240, 180)))
    content = path.read_bytes()
    for name, data in (("empty.jpg", b""), ("half.jpg", content[: len(content) // 2]), ("text.jpg", b"no image")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    reasons: dict[str, str] = {}
    for name in ("missing.jpg", "empty.jpg", "half.jpg", "text.jpg", "folder.jpg"):
        with pytest.raises(UnreadableImageError) as raised, open_image(partial(str, tmp_path / name)) as image:
            read_crop(image, (0, 0, 240, 180), 24)
        reasons[name] = raised.value.reason
    with pytest.raises(UnreadableImageError) as raised, open_image(forbidden):
        pytest.fail("it was opened")
    assert raised.value.reason == "no permission to read it"
    assert reasons["missing.jpg"] == "no such file"
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["half.jpg"] == "the file is truncated"
    assert reasons["folder.jpg"] == "it is a folder"
    assert "truncated" not in reasons["text.jpg"]
