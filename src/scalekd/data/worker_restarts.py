"""A data loader that survives the death of its worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from scalekd.errors import UserError

T = TypeVar("T")
K = TypeVar("K")

ATTEMPTS = 3  # new sets of workers in a row without a single batch


def look_for_lost_workers_only_when_waiting() -> None:
    """Prevent torch from installing its handler of SIGCHLD in this process, which would raise in the middle of a step.

    A loader that waits for a worker checks every few seconds whether it still exists.
    """
    signal_handling._SIGCHLD_handler_set = True


class RestartingLoader(Generic[T, K]):
    """Yields batches in order. If a worker dies, new workers continue with the first batch that was not delivered.

    Args:
        batches: The keys of each batch.
        load: Builds a loader with workers, given the keys of each batch.
        report: Called with a line when workers are replaced.
    """

    def __init__(
        self,
        batches: Sampler[list[K]],
        load: Callable[[Iterable[list[K]]], DataLoader[Any]],
        report: Callable[[str], object] | None = None,
    ) -> None:
        self._batches, self._load, self._report = batches, load, report

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # torch types no sampler as sized

    def __iter__(self) -> Iterator[T]:
        look_for_lost_workers_only_when_waiting()
        given: deque[list[K]] = deque()  # batches handed to the workers and not delivered yet
        batches = iter(self._batches)

        def hand_out() -> Iterator[list[K]]:
            yield from tuple(given)
            for batch in batches:
                given.append(batch)
                yield batch

        lost = 0
        while True:
            try:
                for batch in self._load(_Once(hand_out())):
                    lost = 0
                    given.popleft()
                    yield batch
                return
            except Exception as error:
                if not _is_a_lost_worker(error):
                    raise
                lost += 1
                self._replace(lost, error)

    def _replace(self, lost: int, error: Exception) -> None:
        """Report that the workers are replaced.

        Raises:
            UserError: If they were replaced `ATTEMPTS` times in a row without success.
        """
        what = "a process that loads images was killed"
        if lost > ATTEMPTS:
            raise UserError(
                f"workers: {what}, and so were {ATTEMPTS} new sets of them before their first batch ({error}); the "
                "system may be short of memory: use fewer workers or a smaller batch"
            ) from error
        if self._report is not None:
            self._report(f"warning: {what}; new ones continue from the same batch")


class _Once(Generic[K]):
    """Wraps an iterator as the batch sampler of a loader that is iterated only once."""

    def __init__(self, batches: Iterator[list[K]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[K]]:
        return self._batches


def _is_a_lost_worker(error: Exception) -> bool:
    """Whether a loader's error means that a worker died, as opposed to an exception raised in a worker."""
    if isinstance(error, ConnectionError | EOFError):  # the worker died while its batch was fetched
        return "in DataLoader worker process" not in str(error)
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
