"""Imports faster-coco-eval, which the extra `downstream` installs, or raises an error that says how to install it."""

from __future__ import annotations

from scalekd.errors import UserError

try:
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.core import mask as rle_tools
except ImportError as error:
    reason = f"detection: faster-coco-eval cannot be imported ({error}); pip install '.[downstream]'"
    raise UserError(reason) from error

__all__ = ["COCO", "COCOeval_faster", "rle_tools"]
