"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal stopped the command; no `Exception`, so that nothing takes it for a fault of what it stopped.

    Args:
        message: What to tell the user.
        number: The signal.
    """

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells have it


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGHUP into `Interrupted`: at once, but while training, validations included.

    Attributes:
        asked: The signal that asked to stop.
        patient: Whether somebody looks at `asked` in good time, so that nothing is to be raised.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.patient = False
        self._process = os.getpid()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python takes signals there only
            self._former = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (back, from who took them in between)."""
        for number, former in self._former.items():
            if former != signal.SIG_IGN:  # as `nohup` has SIGHUP, and a script SIGINT of what it starts with &
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # A process that was forked is its parent's to stop. Only a user may be impatient.
        if os.getpid() != self._process or (self.asked is not None and number != signal.SIGINT):
            return
        first, self.asked = self.asked is None, signal.Signals(number)
        if not (first and self.patient):
            raise Interrupted(f"stopped at once by {self.asked.name}; what was written is kept", self.asked)
