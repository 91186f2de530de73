"""Being asked to stop while a run trains: by a scheduler (SIGTERM) or at the keyboard (Ctrl-C)."""

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

ONE_WISH_S = 1.0
"""Launchers pass on a signal that a terminal sends to everybody too: what comes so soon after it is the same wish."""


class Interruption:
    """While it is open, the first signal lets a run save where it is; another one, later, ends it at once.

    Called, it says whether a signal has come. Until it is called for the first time no run would see one, so a signal
    then ends the process at once, by a KeyboardInterrupt. With `if_default`, signals that the program handles in a way
    of its own are left to it.
    """

    def __init__(self, numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM), *, if_default: bool = False) -> None:
        self.number = signal.SIGINT
        self._numbers = tuple(numbers)
        self._if_default = if_default
        self._asked_at: float | None = None
        self._heeded = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Listen, in a program's main thread: no other one is given signals."""
        heard = self._numbers if threading.current_thread() is threading.main_thread() else ()
        for number in heard:
            if not self._if_default or signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bring back the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether to stop now."""
        self._heeded = True
        return self._asked_at is not None

    @property
    def status(self) -> int:
        """The exit status of a process that this signal ended."""
        return 128 + self.number

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.number = signal.Signals(number)
        if self._asked_at is not None and now - self._asked_at < ONE_WISH_S:
            return
        if self._asked_at is not None or not self._heeded:
            raise KeyboardInterrupt
        self._asked_at = now
