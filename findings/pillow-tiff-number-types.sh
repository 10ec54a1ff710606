#!/usr/bin/env bash
# Pillow 13.0.0 reads TIFF pixels of some number types as other numbers, without an error or a warning:
#   - signed bytes (SampleFormat 2, 8 bits) become unsigned ones: -128 is read as 128, -1 as 255;
#   - unsigned 32-bit integers become signed ones: 4294967295 is read as -1;
#   - "white is zero" (PhotometricInterpretation 0) is turned round for 8 bits, but not for 16 bits or for floats, so
#     that the same picture is a negative in one depth and a positive in another.
# Signed 16-bit integers are read as they are. Exits non-zero if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import tifffile
from PIL import Image


def reread(values, dtype, **how):
    """The numbers that Pillow reads from a TIFF of one row, and its mode."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.array([values], dtype), **how)
    file.seek(0)
    with Image.open(file) as image:
        return image.mode, np.asarray(image)[0].tolist()


def expect(what, found, expected):
    print(f"{what:28}{found}")
    assert found == expected, f"{what}: {found}, no longer {expected}"


expect("signed 8 bits", reread([-128, -1, 0, 127], np.int8), ("L", [128, 255, 0, 127]))
expect("signed 16 bits", reread([-32768, -1, 0, 32767], np.int16), ("I", [-32768, -1, 0, 32767]))
expect("unsigned 32 bits", reread([0, 1, 2**31, 2**32 - 1], np.uint32), ("I", [0, 1, -(2**31), -1]))
white_is_zero = {"photometric": "miniswhite"}
expect("white is zero, 8 bits", reread([0, 255], np.uint8, **white_is_zero), ("L", [255, 0]))
expect("white is zero, 16 bits", reread([0, 65535], np.uint16, **white_is_zero), ("I;16", [0, 65535]))
expect("white is zero, float", reread([0, 1], np.float32, **white_is_zero), ("F", [0.0, 1.0]))
PYTHON
