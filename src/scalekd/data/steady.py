"""Loading that survives the death of a worker process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from scalekd.errors import UserError

T = TypeVar("T")
K = TypeVar("K")

ATTEMPTS = 3  # new sets of workers without a batch in between


def look_for_lost_workers_only_when_waiting() -> None:
    """Prevent torch from installing its handler of SIGCHLD in this process, which would raise in the middle of a step.

    A loader that waits for a worker checks every few seconds whether it still exists.
    """
    signal_handling._SIGCHLD_handler_set = True


class SteadyLoader(Generic[T, K]):
    """Batches in order. When a worker dies, new ones go on from the first batch that was not delivered.

    Args:
        batches: The samples of each batch.
        load: A loader with workers, given the samples of each batch.
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
        given: deque[list[K]] = deque()  # to the workers, and not delivered
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
        """Say that the workers are replaced.

        Raises:
            UserError: If that has not helped.
        """
        what = "a process that loads images was killed"
        if lost > ATTEMPTS:
            raise UserError(
                f"workers: {what}, and so were {ATTEMPTS} new sets of them before their first batch ({error}); the "
                "system may be short of memory: give less workers or a smaller batch"
            ) from error
        if self._report is not None:
            self._report(f"warning: {what}; new ones go on from the same batch")


class _Once(Generic[K]):
    """An iterator as the batch sampler of a loader that is iterated once."""

    def __init__(self, batches: Iterator[list[K]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[K]]:
        return self._batches


def _is_a_lost_worker(error: Exception) -> bool:
    """Whether an error of a loader is that a worker died, and none that was raised in one, which says so."""
    if isinstance(error, ConnectionError | EOFError):  # it died while its batch was fetched
        return "in DataLoader worker process" not in str(error)
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
