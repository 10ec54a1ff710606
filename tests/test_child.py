"""Work in a copy of this process."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from scalekd.child import ChildDiedError, can_fork, in_child
from scalekd.errors import UserError

pytestmark = pytest.mark.skipif(not can_fork(torch.device("cpu")), reason="this machine's processes cannot be copied")


def test_the_answer_comes_back_and_nothing_else_changes() -> None:
    weight = torch.ones(3, requires_grad=True)
    state = torch.random.get_rng_state()

    def work() -> float:
        loss = (weight * torch.rand(3)).sum()
        torch.autograd.backward(loss)
        with torch.no_grad():
            weight.zero_()
        return float(loss)

    assert in_child(work) == in_child(work)  # each from the same state
    assert weight.grad is None
    assert weight.tolist() == [1, 1, 1]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal 9 "),
        (os.abort, "signal 6 "),
    ],
)
def test_a_death_is_told(end: object, cause: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildDiedError) as told:
        in_child(end)  # type: ignore[arg-type]
    assert str(told.value).startswith(cause)
    assert capfd.readouterr() == ("", "")


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("data: none"), UserError, "^data: none"),
        (SystemExit(4), SystemExit, "^4"),
        (OddError(1, 2), Exception, "1 and 2"),  # which pickle cannot put together again
    ],
)
def test_an_error_is_raised_here(error: BaseException, kind: type[BaseException], text: str) -> None:
    def work() -> None:
        raise error

    with pytest.raises(kind, match=text):
        in_child(work)


def test_what_takes_too_long_is_given_up() -> None:
    began = time.monotonic()
    assert in_child(lambda: time.sleep(60), seconds=0.2) is None
    assert time.monotonic() - began < 20
