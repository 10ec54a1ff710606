"""Runs a function in a fork of this process, where it may change any state or crash without affecting this process.

Forks on Linux only; elsewhere `can_fork` is false.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from scalekd.errors import UserError

T = TypeVar("T")


class ChildDiedError(UserError):
    """Raised if a child process ended without an answer; names the signal or exit code."""


class ForkError(Exception):
    """Raised if a fork of this process cannot run a backward because autograd has started threads for GPUs."""


def can_fork(device: torch.device) -> bool:
    """Whether a fork of this process can compute on `device`: only on the CPU of a Linux machine without GPU.

    torch's threads for GPUs do not survive a fork, nor do macOS's system libraries.
    """
    may_have_children = not multiprocessing.current_process().daemon  # a daemonic process may not have children
    return device.type == "cpu" and sys.platform == "linux" and may_have_children and not torch.cuda.device_count()


def in_child(work: Callable[[], T], *, seconds: float = 300) -> T | None:
    """Run `work` in a fork of this process on one thread and return its result.

    The fork starts immediately and imports nothing again. What `work` changes (weights, buffers, random generators,
    gradients) changes only in the fork.

    Args:
        work: The function. Its result or exception is transferred with pickle.
        seconds: Time limit.

    Returns:
        The result; None if the time limit was reached.

    Raises:
        ForkError: If the fork cannot run a backward.
        ChildDiedError: If the fork ended without an answer.
        BaseException: Whatever `work` raised.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work), daemon=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about other threads, which the child does not use
            process.start()
        theirs.close()
        if not ours.poll(seconds):
            return None
        answer, error = ours.recv()
    except EOFError:
        process.join()
        raise ChildDiedError(_cause(process.exitcode)) from None
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
    if error is not None:
        raise error
    result: T = answer
    return result


def _answer(pipe: Connection, work: Callable[[], object]) -> None:
    """Run in the child: call `work` and send its result or exception."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _suppress_crash_output()
    torch.set_num_threads(1)  # the thread pool does not exist in the fork
    try:
        _start_autograd()
        pipe.send((work(), None))
    except BaseException as error:  # the parent raises it
        error.add_note(traceback.format_exc())
        pipe.send((None, error if _can_be_sent(error) else RuntimeError(traceback.format_exc())))
    os._exit(0)  # skip the parent's exit handlers


def _can_be_sent(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # the exception's class may do anything in its constructor
        return False
    return True


def _start_autograd() -> None:
    try:
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ForkError(str(error)) from error


def _suppress_crash_output() -> None:
    """Write no core file and print nothing on a crash: the parent reports it."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _cause(code: int | None) -> str:
    """Describe how a process ended: `signal 11 (Segmentation fault)` or `exit code 3`."""
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.strsignal(-code)})"
