"""The training loop: Lightning around `method(images, labels)`."""

from scalekd.training.caching import fill_cache
from scalekd.training.callbacks import Interrupted
from scalekd.training.check import check
from scalekd.training.distill import distill
from scalekd.training.folder import RunFolder

__all__ = ["Interrupted", "RunFolder", "check", "distill", "fill_cache"]
