"""Signals that ask a run to stop, and what leaves a run that was stopped."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from scalekd.errors import Interrupted

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGHUP into `Interrupted`, raised immediately or between two training steps.

    Attributes:
        asked: The signal that asked to stop.
        polled: If true, signals are only recorded in `asked`, and the training loop polls it between steps.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.polled = False
        self._process = os.getpid()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._former = {number: signal.getsignal(number) for number in _SIGNALS}
            for number, former in self._former.items():
                if former != signal.SIG_IGN:  # keep ignoring SIGHUP under `nohup`, and SIGINT in a script's `&` jobs
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # A forked child is stopped by its parent. After the first signal, only Ctrl-C stops immediately.
        if os.getpid() != self._process or (self.asked is not None and number != signal.SIGINT):
            return
        first, self.asked = self.asked is None, signal.Signals(number)
        if not (first and self.polled):
            raise Interrupted(f"stopped at once by {self.asked.name}; files already written are kept", self.asked)
