"""Standard output and error that nothing depends on: whatever becomes of them, a command goes on.

A terminal may be closed, a reader of a pipe gone, a disk full, a letter not in the terminal's alphabet.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any


class _Descriptor(io.FileIO):
    """A file descriptor; from the first write that fails on, what is written is passed over."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while self.failure is None:
                if (count := super().write(data)) is not None:
                    return count
                select.select([], [self], [])  # another program has made it non-blocking
        except OSError as error:
            self.failure = error
        return memoryview(data).nbytes


_spared = False


def install() -> None:
    """Put such streams into sys.stdout and sys.stderr, unless a notebook or a test has put others there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the run's next file would get this number, and what torch says of itself
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if (stream := getattr(sys, name)) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(stream, number))


def _lasting(stream: Any, number: int) -> io.TextIOWrapper:
    """A stream in place of `stream` (None: it was closed from the start)."""
    if stream is None:
        raw, encoding = _Descriptor(os.devnull, "w"), "utf-8"
    else:
        with contextlib.suppress(OSError):
            stream.flush()
        raw, encoding = _Descriptor(number, "w", closefd=False), stream.encoding
    lines = stream is not None and (stream.line_buffering or stream.write_through)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=lines
    )


def spare() -> None:
    """From now on the command is not about what it prints: its result lies in a folder."""
    global _spared
    _spared = True


def lost() -> OSError | None:
    """Why what was printed has not arrived, where the command was about that."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Descriptor) and not _spared else None
