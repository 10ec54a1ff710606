"""What a file's name says: an image by its ending, something else, or nothing that a person put there."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

# What a file may hold, whatever its name says: the formats of cameras, of the web and of science. PIL knows more, would
# run Ghostscript for one of them, and takes nearly anything for some that have no signature.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")  # the usual ones first
_USUAL = (
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Formats that are read under their own ending only.
_RARE = {
    ".dds": "DDS",
    ".dib": "DIB",
    ".ico": "ICO",
    ".pcx": "PCX",
    ".psd": "PSD",
    ".qoi": "QOI",
    ".ras": "SUN",
    ".sgi": "SGI",
    ".tga": "TGA",
}
HEIF = (".heic", ".heif", ".hif")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
NEEDS_HEIF = "is read with pillow-heif; pip install 'scalekd[heif]'"
# What operating systems, file servers and notebooks leave beside pictures.
_LEFT_BY_SYSTEMS = {
    "__macosx", "__pycache__", "@eadir", "@recycle", "@tmp", "#recycle", "$recycle.bin", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip


def ending(name: str) -> str:
    """What is after the last dot of a name, with the dot, in lower case; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file is an image by the ending of its name."""
    return ending(name) in image_endings()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is nothing that a person put there: hidden, or left by a system."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def image_endings() -> frozenset[str]:
    """The endings of images that can be read."""
    return frozenset((*_USUAL, *_RARE, *(HEIF if has_heif() else ())))


@cache
def has_heif() -> bool:
    """Whether the library that reads HEIC and HEIF is there."""
    return importlib.util.find_spec("pillow_heif") is not None


def formats(name: str) -> tuple[str, ...]:
    """PIL's formats that a file of this name may be of."""
    rare = _RARE.get(ending(name))
    usual = (*_FORMATS, *_heif_formats())
    return (*usual, rare) if rare else usual


@cache
def _heif_formats() -> tuple[str, ...]:
    """PIL's name for HEIF, where it can be read; PIL learns it from the library once a process."""
    if not has_heif():
        return ()
    import pillow_heif  # noqa: PLC0415  # an extra

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def why_unidentified(start: bytes) -> str:
    """Why PIL knows no kind of image in a file, given its first 12 bytes; empty where it is simply none."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and not has_heif():
        return f"it is a HEIC file, which {NEEDS_HEIF}"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "its TIFF header is corrupt, or its pixels are of a kind that PIL does not open; save it as 8-bit RGB"
    return ""
