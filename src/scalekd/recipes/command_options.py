"""What `adapt` and `export` take in addition to recipe keys: defaults and refusals. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scalekd.errors import UserError

# Of `adapt`, by its mode, where they differ from a recipe's.
ADAPT: dict[str, dict[str, Any]] = {
    "probe": {"batch": 64, "warmup_epochs": 0},
    "finetune": {
        "epochs": 5, "lr": 5e-5, "batch": 64, "warmup_epochs": 1, "crop_scale": (0.4, 1.0), "label_smoothing": 0.1,
    },
}  # fmt: skip
TRAINING = ("epochs", "lr", "weight_decay", "warmup_epochs", "crop_scale")  # keys that only fine-tuning has


def check_mode(mode: str, keys: Iterable[str], *, resume: bool) -> None:
    """Check that a mode of `adapt` exists and has the keys that the user passed.

    Raises:
        UserError: If not.
    """
    if mode not in ADAPT:
        raise UserError(f"mode: {mode!r} is none of {', '.join(ADAPT)}")
    idle = [key for key in TRAINING if key in keys] + ["resume"] * resume
    if mode == "probe" and idle:
        name = idle[0].replace("_", "-")
        raise UserError(f"{name}: a probe trains nothing but a head; leave --{name} out, or add --mode finetune")


FORMATS = ("timm", "onnx", "torch-export")
_RESIZE_OPSET = 18  # the first version whose Resize antialiases
_INT8_OPSET = 13  # the first version whose DequantizeLinear accepts a scale per channel


def check_format(
    format_: str, *, int8: bool, opset: int | None = None, hub: str | None = None, pixels: bool = False
) -> None:
    """Check that a format of `export` exists and has the options that the user passed.

    Raises:
        UserError: If not.
    """
    if format_ not in FORMATS:
        raise UserError(f"format: {format_!r} is none of {', '.join(FORMATS)}")
    if format_ != "onnx" and (int8 or opset is not None or pixels):
        raise UserError(f"format: --int8, --opset and --input uint8 are for onnx, not {format_}")
    if pixels and opset is not None and opset < _RESIZE_OPSET:
        raise UserError(
            f"opset: --input uint8 needs {_RESIZE_OPSET} or above, whose Resize antialiases; {opset} is given"
        )
    if int8 and opset is not None and opset < _INT8_OPSET:
        raise UserError(f"opset: --int8 needs {_INT8_OPSET} or above, because of a scale per channel; {opset} is given")
    if hub is not None and format_ != "timm":
        raise UserError(f"push_to_hub: uploads timm folders; pass --format timm, not {format_}")
