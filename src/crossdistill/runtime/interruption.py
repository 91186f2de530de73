"""Handling of signals that stop a run: SIGTERM from a scheduler, SIGINT from the keyboard (Ctrl-C)."""

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

REPEAT_S = 1.0
"""Seconds after a signal in which another one is ignored: launchers repeat signals that a terminal sends to all."""


class Interruption:
    """A context in which the first signal makes a run save and stop, and a later one ends it at once.

    A call returns whether a signal has arrived. Before the first call, no run would notice a signal, so it raises a
    KeyboardInterrupt. With `if_default`, signals for which the program has installed a handler keep that handler.
    """

    def __init__(self, numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM), *, if_default: bool = False) -> None:
        self.number = signal.SIGINT
        self._numbers = tuple(numbers)
        self._if_default = if_default
        self._signalled_at: float | None = None
        self._called = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Install the handlers, if this is the main thread: Python delivers signals to no other."""
        numbers = self._numbers if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            if not self._if_default or signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the former handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a signal has arrived."""
        self._called = True
        return self._signalled_at is not None

    @property
    def status(self) -> int:
        """The exit status of a process that this signal ended."""
        return 128 + self.number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.number = signal.Signals(number)
        if self._signalled_at is not None and now - self._signalled_at < REPEAT_S:
            return
        if self._signalled_at is not None or not self._called:
            raise KeyboardInterrupt
        self._signalled_at = now
