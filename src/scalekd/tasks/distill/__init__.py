"""Training a student, alone or with a teacher."""

from scalekd.tasks.distill.caching import fill_cache
from scalekd.tasks.distill.check import check
from scalekd.tasks.distill.run import distill, distill_students

__all__ = ["check", "distill", "distill_students", "fill_cache"]
