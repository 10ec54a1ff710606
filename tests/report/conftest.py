from __future__ import annotations

from report_runs import listed, runs

__all__ = ["listed", "runs"]
