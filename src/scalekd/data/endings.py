"""Classify files by name: image (by its ending), other file, or hidden file."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

# Formats that any image file may hold, whatever its ending: those of cameras, the web and science. PIL's other formats
# are left out, because it would run Ghostscript for one of them and some without a signature match nearly any file.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")  # most frequent first
_USUAL = (
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Formats that are read only under their own ending.
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
NEEDS_HEIF = "is read with pillow-heif; pip install '.[heif]'"
# Files and folders that operating systems, file servers and notebooks leave next to images.
_LEFT_BY_SYSTEMS = {
    "__macosx", "__pycache__", "@eadir", "@recycle", "@tmp", "#recycle", "$recycle.bin", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip


def ending(name: str) -> str:
    """Return a name's ending, from its last dot on, in lower case; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file is an image, judged by its ending."""
    return ending(name) in image_endings()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was left behind by an operating system or file server."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def image_endings() -> frozenset[str]:
    """Return the endings of images that can be read."""
    return frozenset((*_USUAL, *_RARE, *(HEIF if has_heif() else ())))


@cache
def has_heif() -> bool:
    """Whether pillow-heif, which reads HEIC and HEIF, is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def formats(name: str) -> tuple[str, ...]:
    """Return PIL's names of the formats that a file of this name may have."""
    rare = _RARE.get(ending(name))
    usual = (*_FORMATS, *_heif_formats())
    return (*usual, rare) if rare else usual


@cache
def _heif_formats() -> tuple[str, ...]:
    """Return PIL's name for HEIF if it can be read; the first call in a process registers pillow-heif with PIL."""
    if not has_heif():
        return ()
    import pillow_heif  # noqa: PLC0415  # optional dependency

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def why_unidentified(start: bytes) -> str:
    """Return why PIL cannot identify a file, given its first 12 bytes; empty if it is simply not an image."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and not has_heif():
        return f"it is a HEIC file, which {NEEDS_HEIF}"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "its TIFF header is corrupt, or its pixels are of a kind that PIL does not open; save it as 8-bit RGB"
    return ""
