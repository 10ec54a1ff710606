"""The training loop: Lightning around `method(images, labels)`."""

from scalekd.training.caching import fill_cache
from scalekd.training.callbacks import Interrupted
from scalekd.training.check import check
from scalekd.training.distill import distill, distill_students
from scalekd.training.folder import RunFolder
from scalekd.training.group import Group

__all__ = ["Group", "Interrupted", "RunFolder", "check", "distill", "distill_students", "fill_cache"]
