"""Runs a command in several processes with torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `scalekd ARGUMENTS` in `count` processes, as `torchrun --standalone` would, and wait for them.

    Args:
        count: Number of processes, all on this machine.
        arguments: The command line of each process; it detects that it was launched.

    Returns:
        The exit code: that of the processes, or 128 plus the signal that ended them.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes print their own errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))  # they share the cores
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "scalekd", *arguments)
        except ChildFailedError as error:
            code = max(failure.exitcode for failure in error.failures.values())
            return code if code > 0 else 128 - code
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0
