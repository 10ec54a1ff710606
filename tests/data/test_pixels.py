"""Every kind of pixel that PIL opens is converted to 8-bit RGB by its documented rule, or refused with a reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from scalekd.data.decoding import UnreadableImageError, open_image, read, read_crop

RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(32, 0)
GREY = np.arange(256, dtype=np.uint8)[None].repeat(32, 0)
COLOUR = Image.fromarray(np.stack([GREY, 255 - GREY, GREY // 2], -1))
TIFF_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating-point"}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array(pixels: NDArray[Any], kind: str = "TIFF", **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), kind, **options)


def tiff(pixels: bytes, bits: int, numbers: int, *, photometric: int = 1, channels: int = 1) -> bytes:
    """An uncompressed TIFF file, 256 x 32, of values that our libraries cannot write; see `TIFF_NUMBERS`."""
    tags = [
        (256, 4, [256]), (257, 4, [32]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [0]), (277, 3, [channels]), (278, 4, [32]), (279, 4, [len(pixels)]), (339, 3, [numbers] * channels),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries, behind = [], b""
    for tag, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place, behind = struct.pack("<I", start + len(behind)), behind + packed
        else:
            place = packed.ljust(4, b"\0")
        entries.append([struct.pack("<HHI", tag, kind, len(values)), place])
    entries[5][1] = struct.pack("<I", start + len(behind))
    directory = b"".join(head + place for head, place in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + behind + pixels


def read_grey(content: bytes) -> NDArray[np.uint8]:
    """The first row of an image whose channels are all equal; a crop of it must be the same."""
    with open_image(lambda: io.BytesIO(content)) as image:
        pixels = read(image).numpy()
    with open_image(lambda: io.BytesIO(content)) as image:
        assert np.array_equal(read_crop(image, (8, 8, 24, 24), 16).numpy(), pixels[:, 8:24, 8:24])
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[1], pixels[2])
    row: NDArray[np.uint8] = pixels[0, 0]
    return row


PAIRS = (GREY.astype(np.uint32) * 4095 // 255).reshape(-1, 2)  # of 12-bit numbers, which share three bytes
BYTES = [PAIRS[:, 0] >> 4, ((PAIRS[:, 0] & 15) << 4) | (PAIRS[:, 1] >> 8), PAIRS[:, 1] & 255]
TWELVE_BITS = np.stack(BYTES, -1).astype(np.uint8).tobytes()
READ = {
    "floating point from 0 to 1": array(RAMP),
    "floating point, compressed": array(RAMP, compression="tiff_adobe_deflate"),
    "floating point, PFM": array(RAMP, "PPM"),
    "floating point, white is 0": tiff((1 - RAMP).astype("<f4").tobytes(), 32, 3, photometric=0),
    "16 bits": array(GREY.astype(np.uint16) * 257),
    "16 bits, big-endian": array((GREY.astype(np.uint16) * 257).astype(">u2")),
    "16 bits, PNG": array(GREY.astype(np.uint16) * 257, "PNG"),
    "16 bits, PGM": array(GREY.astype(np.uint16) * 257, "PPM"),
    "16 bits, JPEG 2000": array(GREY.astype(np.uint16) * 257, "JPEG2000"),
    "16 bits, white is 0": tiff(((255 - GREY).astype("<u2") * 257).tobytes(), 16, 1, photometric=0),
    "12 bits": tiff(TWELVE_BITS, 12, 1),
    "32 bits of 8": array(GREY.astype(np.int32)),
    "16 bits with a sign, of 8": tiff(GREY.astype("<i2").tobytes(), 16, 2),
    "8 bits": array(GREY),
}


@pytest.mark.parametrize("kind", READ)
def test_grey_is_scaled_to_8_bits(kind: str) -> None:
    assert np.abs(read_grey(READ[kind]).astype(int) - np.arange(256)).max() <= (1 if kind == "12 bits" else 0)


REFUSED = {
    "floating point to 255": (array(RAMP * 255), "floating-point values from 0 to 255; they are read from 0"),
    "floating point a little above 1": (array(RAMP * 1.001), "from 0 to 1.001"),
    "floating point around 0": (array(RAMP - 0.5), "from -0.5 to 0.5"),
    "no number": (array(np.where(RAMP == 0, np.nan, RAMP)), "not finite"),
    "infinite": (array(np.where(RAMP == 0, np.inf, RAMP)), "not finite"),
    "constant beyond white": (array(RAMP * 0 + 7), "from 7 to 7"),
    "32 bits beyond 8": (array(GREY.astype(np.int32) * 257), "whole numbers from 0 to 65535; they are read from 0"),
    "32 bits, unsigned": (tiff((GREY.astype("<u4") << 24).tobytes(), 32, 1), "whole numbers from 0 to 4.278"),
    "16 bits with a sign": (tiff((GREY.astype("<i2") - 100).tobytes(), 16, 2), "whole numbers from -100 to 155"),
    "8 bits with a sign": (tiff(GREY.tobytes(), 8, 2), "whole numbers from -128 to 127"),
    "64-bit floating point": (tiff(RAMP.astype("<f8").tobytes(), 64, 3), "of a kind that PIL does not open"),
    "floating-point colour": (
        tiff(RAMP.repeat(3).tobytes(), 32, 3, photometric=2, channels=3), "of a kind that PIL does not open"
    ),
    "five bands of 16 bits": (
        tiff(GREY.astype("<u2").repeat(5).tobytes(), 16, 1, channels=5), "of a kind that PIL does not open"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_agreed_black_and_white_is_unreadable_whatever_is_cropped(kind: str) -> None:
    content, reason = REFUSED[kind]
    for box in ((0, 0, 256, 32), (100, 8, 108, 16)):
        with pytest.raises(UnreadableImageError) as raised, open_image(lambda: io.BytesIO(content)) as image:
            read_crop(image, box, 8)
        assert reason in raised.value.reason
    with pytest.raises(UnreadableImageError), open_image(lambda: io.BytesIO(content)) as image:
        read(image)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_a_constant_picture_is_as_bright_as_it_says(value: float) -> None:
    assert (read_grey(array(np.full((32, 256), value, np.float32))) == round(255 * value + 1e-6)).all()


def in_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


COLOURS = {
    "CMYK": encoded(COLOUR.convert("CMYK"), "TIFF"),
    "YCbCr": encoded(COLOUR.convert("YCbCr"), "TIFF"),
    "LAB": encoded(in_lab(COLOUR), "TIFF"),
    "RGBA": encoded(COLOUR.convert("RGBA"), "PNG"),
    "16-bit colour": tiff((np.asarray(COLOUR).astype("<u2") * 257).tobytes(), 16, 1, photometric=2, channels=3),
    "AVIF": encoded(COLOUR, "AVIF", quality=100),
    "JPEG 2000": encoded(COLOUR, "JPEG2000"),
    "GIF": encoded(COLOUR, "GIF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_those_that_were_written(kind: str) -> None:
    with open_image(lambda: io.BytesIO(COLOURS[kind])) as image:
        difference = np.abs(read(image).numpy().transpose(1, 2, 0).astype(int) - np.asarray(COLOUR))
    assert difference.mean() < 3


@pytest.mark.filterwarnings("error")
def test_transparency_is_ignored() -> None:
    alpha = Image.fromarray(GREY)
    see_through, palette = COLOUR.copy(), COLOUR.quantize(16)
    see_through.putalpha(alpha)
    grey = Image.merge("LA", [Image.fromarray(GREY), alpha])
    for content, expected in (
        (encoded(see_through, "PNG"), COLOUR),
        (encoded(see_through, "WEBP", lossless=True, exact=True), COLOUR),
        (encoded(palette, "PNG", transparency=bytes(range(16))), palette.convert("RGB")),
        (encoded(grey, "PNG"), Image.fromarray(GREY).convert("RGB")),
    ):
        with open_image(lambda content=content: io.BytesIO(content)) as image:  # type: ignore[misc]
            assert np.array_equal(read(image).numpy().transpose(1, 2, 0), np.asarray(expected))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with open_image(lambda content=content: io.BytesIO(content)) as image:  # type: ignore[misc]
            assert read(image).float().mean((1, 2)).tolist() == pytest.approx([255, 0, 0], abs=3), kind
