"""Batches prepared ahead of their consumer by one background thread, with its errors and its end."""

from __future__ import annotations

import atexit
import queue
import weakref
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]
Rendered = tuple[tuple[Tensor, ...], Tensor]  # views, each uint8 (b, S, S, 3); int64 (b,) data set indices

_POLL_SECONDS = 0.2


class Reader(Protocol):
    """One pass over some batches, read by a thread of its own that has been started."""

    error: BaseException | None
    """What ended the thread before its time."""

    def take(self, timeout: float) -> Rendered | None:
        """The next batch, None at the end; queue.Empty when there is none within `timeout` seconds."""

    def is_alive(self) -> bool:
        """Whether the thread still runs."""

    def stop(self) -> None:
        """End the thread and wait for it; safe at any time, and twice."""


_running: weakref.WeakSet[Reader] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """End the threads of iterators nobody closed: one cut off at exit inside C++ code aborts the process."""
    for reader in list(_running):
        reader.stop()


def consume(reader: Reader) -> Iterator[Rendered]:
    """All batches of a reader; raises what its thread raised, and stops it whenever the consumer leaves."""
    _running.add(reader)
    try:
        while True:
            try:
                item = reader.take(_POLL_SECONDS)
            except queue.Empty:
                if reader.is_alive():
                    continue
                try:
                    item = reader.take(0.0)  # it may have put its last batch since
                except queue.Empty:
                    raise reader.error or RuntimeError("the loader was closed during this epoch") from None
            if item is None:
                return
            yield item
    finally:
        reader.stop()
        _running.discard(reader)


class StopReading(Exception):
    """Raised inside a reader's thread to end it early."""


def stop_thread(thread: Thread, stopped: Event, items: queue.Queue[Any]) -> None:
    """Set `stopped` and empty `items`, in which the thread may be waiting for room, until it has ended."""
    stopped.set()
    while thread.is_alive():
        try:
            while True:
                items.get_nowait()
        except queue.Empty:
            thread.join(0.01)


class ThreadReader(Thread):
    """Calls `render` on each of `batches` in a thread, at most `ahead` batches before the consumer."""

    def __init__(self, render: Callable[[Ints], Rendered], batches: Sequence[Ints], ahead: int) -> None:
        super().__init__(name="rmd-loader", daemon=True)
        self.error: BaseException | None = None
        self._render, self._batches = render, batches
        self._items: queue.Queue[Rendered | None] = queue.Queue(ahead)
        self._stopped = Event()
        self.start()

    def run(self) -> None:
        try:
            for samples in self._batches:
                if self._stopped.is_set():
                    return
                self._items.put(self._render(samples))
            self._items.put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            self.error = error

    def take(self, timeout: float) -> Rendered | None:
        return self._items.get(timeout=timeout) if timeout else self._items.get_nowait()

    def stop(self) -> None:
        stop_thread(self, self._stopped, self._items)
