"""The training loop: Lightning around `method(images, labels)`."""

from scalekd.training.caching import fill_cache
from scalekd.training.callbacks import Interrupted
from scalekd.training.check import check
from scalekd.training.distill import distill, distill_students
from scalekd.training.folder import RunFolder
from scalekd.training.group import Group
from scalekd.training.processes import Stopped, joined, launched, restarted

__all__ = [
    "Group",
    "Interrupted",
    "RunFolder",
    "Stopped",
    "check",
    "distill",
    "distill_students",
    "fill_cache",
    "joined",
    "launched",
    "restarted",
]
