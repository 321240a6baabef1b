"""SIGTERM, Ctrl-C, SIGHUP: asked to stop, a run finishes its step, saves and ends with a code of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from rmd_dist.errors import EXIT_INTERRUPTED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Asked to end; that the user has given up; that the terminal is gone (unless that is ignored: nohup)."""

SAME_CTRL_C_SECONDS = 3.0 if "TORCHELASTIC_RUN_ID" in os.environ else 1.0
"""A Ctrl-C reaches launcher and ranks at once, and the launcher passes it on: the ranks get it twice."""


@contextlib.contextmanager
def while_ranks_meet() -> Iterator[None]:
    """A Ctrl-C ends the process at once, as SIGTERM does: nothing has begun.

    Python's handlers, Preemption's too, are not called while torch waits for a rank that may never come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Preemption:
    """Handlers of SIGNALS while inside; afterwards those before are back.

    Until `defer` is called a signal raises Stopped where the main thread is: nothing has begun that could
    be saved. From then on it only sets `requested`, which the trainer reads between steps. A second Ctrl-C
    ends the process at once. Outside the main thread, where Python allows no handlers, nothing is done.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal that asked for a stop."""
        self._deferring = False
        self._first = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def defer(self) -> None:
        """From now on a signal waits for the trainer."""
        self._deferring = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.requested is None:
            self.requested, self._first = name, now
            if not self._deferring:
                raise Stopped(f"{name} before training began; the same command starts again")
        elif number == signal.SIGINT and now - self._first > SAME_CTRL_C_SECONDS:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(sys.stderr.fileno(), b"interrupted twice: ended at once, without a checkpoint\n")
            os._exit(EXIT_INTERRUPTED)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
