"""What torch's elastic launcher tells the processes that it starts, read without torch."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether torch's elastic launcher (`torchrun`) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ  # as torch.distributed.is_torchelastic_launched


def restarted() -> bool:
    """Whether the launcher has restarted the processes after one was lost."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
