"""Work in a copy of this process, which it may change or end without a trace in this one. For Linux and macOS."""

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


class DeathError(UserError):
    """A child process ended without an answer; says by what."""


class ForkError(Exception):
    """A copy of this process cannot run a backward: autograd has started threads for GPUs."""


def can_fork(device: torch.device) -> bool:
    """Whether a copy of this process can compute on `device`: on the CPU of a Linux machine that has no GPU.

    torch's threads for GPUs do not survive the copy, nor do macOS's own libraries.
    """
    alone = not multiprocessing.current_process().daemon  # which may have no children
    return device.type == "cpu" and sys.platform == "linux" and alone and not torch.cuda.device_count()


def in_child(work: Callable[[], T], *, seconds: float = 300) -> T | None:
    """What `work` gives in a copy of this process, made at once and without loading anything anew; on one thread.

    What it changes (weights, buffers, random generators, gradients) is changed in the copy alone.

    Args:
        work: Its answer, or what it raises, is brought here by pickle.
        seconds: How long it may take.

    Returns:
        The answer; None where it took longer.

    Raises:
        ForkError: If the copy cannot run a backward.
        DeathError: If the copy ended without an answer.
        BaseException: What `work` raised.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work), daemon=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads; it uses none of them
            process.start()
        theirs.close()
        if not ours.poll(seconds):
            return None
        answer, error = ours.recv()
    except EOFError:
        process.join()
        raise DeathError(_cause(process.exitcode)) from None
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
    if error is not None:
        raise error
    result: T = answer
    return result


def _answer(pipe: Connection, work: Callable[[], object]) -> None:
    """What the child does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _die_in_silence()
    torch.set_num_threads(1)  # the threads of the pool are not part of the copy
    try:
        _start_autograd()
        pipe.send((work(), None))
    except BaseException as error:  # the parent raises it
        error.add_note(traceback.format_exc())
        pipe.send((None, error if _can_be_sent(error) else RuntimeError(traceback.format_exc())))
    os._exit(0)  # runs nothing that the parent has set up for its own end


def _can_be_sent(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does with its arguments
        return False
    return True


def _start_autograd() -> None:
    try:
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ForkError(str(error)) from error


def _die_in_silence() -> None:
    """Leave no core file and print nothing: the parent tells what happened."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _cause(code: int | None) -> str:
    """`signal 11 (Segmentation fault)` or `exit code 3`."""
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.strsignal(-code)})"
