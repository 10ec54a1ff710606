"""The processes of a distributed run: their ranks, how they exchange values, and how an error in one ends all.

torch's elastic launcher (`torchrun`) starts them.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from scalekd.engine.launcher import launched
from scalekd.errors import Interrupted, Stopped, UserError, first_line
from scalekd.models.failure import ModelError

T = TypeVar("T")
_NOTE = "scalekd/stopped"  # key in the launcher's store: the exit code of the first process that left training


@dataclass
class Processes:
    """The processes of a run, seen from one of them; by default there is only this one.

    Before training, all communication goes through `gather`, so that an error in one process reaches the others in
    their next call and ends all of them.

    Attributes:
        rank: Index of this process.
        count: Number of processes.
        local_rank: Index of this process on its machine.
        local_count: Number of processes on this machine.
        training: Whether training has begun. A process that fails then exits alone, and the others notice its loss in
            their next collective operation.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    training: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, in order; waits for all of them.

        Raises:
            Stopped: If another process raised an error instead.
        """
        answers, failed = self._exchange(value, None)
        if failed:
            raise Stopped("", failed[min(failed)])
        return answers

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises:
            Stopped: If another process raised an error instead.
        """
        self.gather(None)

    def from_first(self, ask: Callable[[], T]) -> T:
        """Call `ask` in the first process only and return its result in all; an error in it ends all of them."""
        return self.gather(ask() if self.first else None)[0]  # type: ignore[return-value]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.count > 1:
            dist.all_reduce(values := values.clone())
            values /= self.count
        return values

    def _exchange(self, value: T, exit_code: int | None) -> tuple[list[T], dict[int, int]]:
        """Return every process's value, and the exit codes of those that have an error, by rank."""
        if self.count == 1:
            return [value], {}
        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, (value, exit_code))
        codes = {rank: code for rank, (_, code) in enumerate(answers) if code is not None}
        return [answer for answer, _ in answers], codes

    def settle(self, error: BaseException) -> BaseException:
        """Return what this process should raise after an error: only the first process with an error reports it."""
        if isinstance(error, Stopped):
            return error
        if _is_lost_process(error):
            code = _read_note()
            return Stopped("another process of the run stopped", 1 if code is None else code)
        if self.training or not isinstance(error, Exception):
            _write_note(_exit_code(error))
            # The launcher sends a signal to all processes; only the first one reports it.
            silent = self.rank and isinstance(error, Interrupted)
            return Stopped("", _exit_code(error)) if silent else error
        failed = self._exchange(None, _exit_code(error))[1]
        if min(failed) != self.rank:
            return Stopped("", failed[min(failed)])
        if self.rank and len(failed) < self.count and isinstance(error, UserError):
            return type(error)(f"{error} (process {self.rank} of 0 to {self.count - 1}, on {socket.gethostname()})")
        return error


class Request(NamedTuple):
    """What a process requests after a step.

    Attributes:
        stop: The number of the signal that asked to stop; 0 to continue.
        checkpoint: Whether a checkpoint is due.
    """

    stop: int = 0
    checkpoint: bool = False

    @property
    def signal(self) -> signal.Signals:
        """The signal that asked to stop."""
        return signal.Signals(self.stop)


def check_devices(processes: Processes, accelerator: str, device: torch.device) -> None:
    """Check that there is a device for each of several processes.

    Raises:
        UserError: If there are more processes on this machine than GPUs, or the device supports only one process.
    """
    if processes.count == 1:
        return
    if accelerator == "mps" or device.type == "mps":
        raise UserError(f"accelerator: mps trains in one process, not in {processes.count}; set it to cpu")
    here, gpus = processes.local_count, torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise UserError(f"devices: {here} processes on this machine for {gpus} GPU(s); start one process per GPU")


class Vote:
    """Combines the requests of all processes without waiting: each step's result is available at the next step.

    Args:
        processes: The processes of the run; if there is only one, the result is available immediately.
    """

    def __init__(self, processes: Processes) -> None:
        self._alone = processes.count == 1
        self._pending: tuple[Tensor, dist.Work] | None = None

    def cast(self, request: Request) -> Request:
        """Send this process's request; returns the combined request of the previous step, equal in all processes."""
        if self._alone:
            return request
        previous = Request()
        if self._pending is not None:
            result, work = self._pending
            work.wait()
            previous = Request(int(result[0]), bool(result[1]))
        values = torch.tensor([request.stop, int(request.checkpoint)])
        self._pending = values, dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
        return previous

    def close(self) -> None:
        """Wait for the pending exchange; the process group must not be destroyed before."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


_joined: ContextVar[Processes | None] = ContextVar("joined", default=None)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the process group of torch's elastic launcher, and leave it at the end; nested calls reuse the group.

    Raises:
        UserError: If the process group cannot be set up.
        Stopped: If another process ended the run.
    """
    if _joined.get() is not None or not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield _joined.get() or Processes()
        return
    rank, count, local_rank, local_count = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    processes = Processes(rank, count, local_rank, local_count)
    _init_process_group(processes)
    token = _joined.set(processes)
    try:
        yield processes
    except BaseException as error:
        settled = processes.settle(error)
        if settled is error:
            raise
        raise settled from None
    finally:
        _joined.reset(token)
        dist.destroy_process_group()


def _init_process_group(processes: Processes) -> None:
    """Set up the process group: gloo for tensors on the CPU, nccl for tensors on GPUs."""
    gpus = torch.cuda.device_count()
    if processes.local_rank < gpus:  # there may be more processes if they train on the CPU, see `check_devices`
        torch.cuda.set_device(processes.local_rank)
    try:
        # A prefix per start, because the launcher's store still holds the keys of earlier starts.
        found, rank, count = next(rendezvous("env://"))
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=count)
    except RuntimeError as error:  # includes torch's network, store and backend errors
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"{processes.count} could not connect at {place} ({first_line(error)})"
        raise UserError(f"processes: {what}; see docs/cluster.md") from error


def _exit_code(error: BaseException) -> int:
    """Return the command line's exit code for an error."""
    if isinstance(error, OSError | MemoryError | RecursionError | torch.OutOfMemoryError):
        return 2
    return int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))


def _is_lost_process(error: BaseException | None) -> bool:
    """Whether an error, or one during whose handling it was raised, means that another process is gone."""
    words = ("closed by peer", "reset by peer", "gloo/transport", "Broken pipe")
    while error is not None and (not isinstance(error, UserError) or isinstance(error, ModelError)):
        if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in words):
            return True
        error = error.__context__
    return False


def _write_note(code: int) -> None:
    """Leave an exit code in the launcher's store for the processes that will lose this one."""
    try:
        dist.distributed_c10d._get_default_store().set(_NOTE, str(code))
    except RuntimeError:
        return  # the machine that hosts the store is gone


def _read_note() -> int | None:
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.get(_NOTE)) if store.check([_NOTE]) else None
    except RuntimeError:
        return None
