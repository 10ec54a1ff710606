"""The training loop: Lightning around `method(images, labels)`."""

from scalekd.training.caching import fill_cache
from scalekd.training.check import check
from scalekd.training.distill import distill, distill_students
from scalekd.training.folder import RunFolder
from scalekd.training.group import Group
from scalekd.training.processes import Stopped, joined, launched, restarted
from scalekd.training.stopping import Interrupted, Stop

__all__ = [
    "Group",
    "Interrupted",
    "RunFolder",
    "Stop",
    "Stopped",
    "check",
    "distill",
    "distill_students",
    "fill_cache",
    "joined",
    "launched",
    "restarted",
]
