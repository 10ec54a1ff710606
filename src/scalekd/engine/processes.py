"""The processes of a run: who they are, and how they agree. torch's elastic launcher starts them."""

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

from scalekd.errors import Interrupted, UserError, first_line
from scalekd.models.failure import ModelError

T = TypeVar("T")
_NOTE = "scalekd/stopped"  # in the launcher's store: the exit code of the first process that left a training


class Stopped(Exception):  # noqa: N818 (no error of this process)
    """Another process of the run ended it; empty where that one has said why.

    Attributes:
        exit_code: What this process is to exit with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Processes:
    """The processes of a run, seen from one of them; by default it is alone.

    What they say to each other before the training goes through `gather`, so that an error of one, wherever it is,
    meets the others at their next word and ends all.

    Attributes:
        rank: Number of this one.
        count: How many there are.
        local_rank: Number of this one on its machine.
        local_count: How many there are on its machine.
        training: Whether they train: whoever fails then goes alone, and the others lose it in their next exchange.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    training: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order; waits for all.

        Raises:
            Stopped: If another process had an error instead.
        """
        answers, failed = self._exchange(value, None)
        if failed:
            raise Stopped("", failed[min(failed)])
        return answers

    def first_says(self, ask: Callable[[], T]) -> T:
        """What the first process finds; an error of its is everyone's."""
        return self.gather(ask() if self.first else None)[0]  # type: ignore[return-value]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.count > 1:
            dist.all_reduce(values := values.clone())
            values /= self.count
        return values

    def _exchange(self, value: T, exit_code: int | None) -> tuple[list[T], dict[int, int]]:
        """Everyone's value, and the exit codes of those that have an error, by rank."""
        if self.count == 1:
            return [value], {}
        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, (value, exit_code))
        codes = {rank: code for rank, (_, code) in enumerate(answers) if code is not None}
        return [answer for answer, _ in answers], codes

    def settle(self, error: BaseException) -> BaseException:
        """What this process is to raise for an error of its own: of those that have one, the first tells it."""
        if isinstance(error, Stopped):
            return error
        if _is_loss(error):
            code = _read_note()
            return Stopped("another process of the run stopped", 1 if code is None else code)
        if self.training or not isinstance(error, Exception):
            _write_note(_exit_code(error))
            # The launcher signals all, and the first one says so.
            silent = self.rank and isinstance(error, Interrupted)
            return Stopped("", _exit_code(error)) if silent else error
        failed = self._exchange(None, _exit_code(error))[1]
        if min(failed) != self.rank:
            return Stopped("", failed[min(failed)])
        if self.rank and len(failed) < self.count and isinstance(error, UserError):
            return type(error)(f"{error} (process {self.rank} of 0 to {self.count - 1}, on {socket.gethostname()})")
        return error


class Wish(NamedTuple):
    """What a process wants to happen after a step.

    Attributes:
        stop: The number of the signal that asked to stop; 0 to continue.
        checkpoint: Whether it is time for a checkpoint.
    """

    stop: int = 0
    checkpoint: bool = False

    @property
    def signal(self) -> signal.Signals:
        """The signal that asked to stop."""
        return signal.Signals(self.stop)


def check_devices(processes: Processes, accelerator: str, device: torch.device) -> None:
    """Make sure that several processes find a device each.

    Raises:
        UserError: If there are more of them here than GPUs, or the device trains in one process only.
    """
    if processes.count == 1:
        return
    if accelerator == "mps" or device.type == "mps":
        raise UserError(f"accelerator: mps trains in one process, not in {processes.count}; set it to cpu")
    here, gpus = processes.local_count, torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise UserError(f"devices: {here} processes here for {gpus} GPU(s); start one for each")


class Vote:
    """What any of the processes wants: asked at every step and answered at the next, so that none waits for the answer.

    Args:
        processes: Those of the run; one that is alone has its answer at once.
    """

    def __init__(self, processes: Processes) -> None:
        self._alone = processes.count == 1
        self._asked: tuple[Tensor, dist.Work] | None = None

    def cast(self, wish: Wish) -> Wish:
        """Ask with this process's wish; returns the answer to the last question, the same in all processes."""
        if self._alone:
            return wish
        last = Wish()
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            last = Wish(int(answer[0]), bool(answer[1]))
        question = torch.tensor([wish.stop, int(wish.checkpoint)])
        self._asked = question, dist.all_reduce(question, dist.ReduceOp.MAX, async_op=True)
        return last

    def close(self) -> None:
        """Wait for the answer that is still on its way: the processes must not part before."""
        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None


_joined: ContextVar[Processes | None] = ContextVar("joined", default=None)


def launched() -> bool:
    """Whether torch's elastic launcher (`torchrun`) has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def restarted() -> bool:
    """Whether the launcher has started the processes again, after one was lost."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torch's elastic launcher has started, and part at the end; inside of itself, no more.

    Raises:
        UserError: If they cannot meet.
        Stopped: If another process ended the run.
    """
    if _joined.get() is not None or not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield _joined.get() or Processes()
        return
    rank, count, local_rank, local_count = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    processes = Processes(rank, count, local_rank, local_count)
    _meet(processes)
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


def _meet(processes: Processes) -> None:
    """Set the process group up: gloo for what is on the CPU, nccl for what is on GPUs."""
    gpus = torch.cuda.device_count()
    if processes.local_rank < gpus:  # more of them may train on the CPU, see `Setup`
        torch.cuda.set_device(processes.local_rank)
    try:
        # Names of their own for each start: the launcher's store still holds those of the processes before.
        found, rank, count = next(rendezvous("env://"))
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=count)
    except RuntimeError as error:  # torch's errors of the network, the store and the backend among them
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"{processes.count} were to meet at {place}, which failed ({first_line(error)})"
        raise UserError(f"processes: {what}; see docs/cluster.md") from error


def _exit_code(error: BaseException) -> int:
    """What the command line exits with after an error."""
    if isinstance(error, OSError | MemoryError | RecursionError | torch.OutOfMemoryError):
        return 2
    return int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error says, or came up while handling one that says, that another process is no longer there."""
    words = ("closed by peer", "reset by peer", "gloo/transport", "Broken pipe")
    while error is not None and (not isinstance(error, UserError) or isinstance(error, ModelError)):
        if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in words):
            return True
        error = error.__context__
    return False


def _write_note(code: int) -> None:
    """Leave an exit code for those that will lose this process; the launcher holds the store."""
    try:
        dist.distributed_c10d._get_default_store().set(_NOTE, str(code))
    except RuntimeError:
        return  # the machine that holds it is gone


def _read_note() -> int | None:
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.get(_NOTE)) if store.check([_NOTE]) else None
    except RuntimeError:
        return None
