"""Training a student, alone or with a teacher."""

from scalekd.tasks.distill.dry_run import dry_run
from scalekd.tasks.distill.filling import fill_cache
from scalekd.tasks.distill.pilot import Pilot, run_pilot
from scalekd.tasks.distill.run import distill, distill_students

__all__ = ["Pilot", "distill", "distill_students", "dry_run", "fill_cache", "run_pilot"]
