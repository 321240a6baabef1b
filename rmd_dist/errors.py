"""What ends a run before its time, other than a mistake in its configuration; and the exit codes.

    0    finished
    1    failed: a Fault (one line, the newest intact checkpoint named) or a bug (a traceback)
    2    a mistake in configuration, data or command line (ConfigError, one line)
    75   stopped by SIGTERM or Ctrl-C, saved: the same command continues (EX_TEMPFAIL of sysexits.h)
    130  a second Ctrl-C: ended at once
    141  who reads the output of a command that is about it has gone, as `head` does (128 + SIGPIPE)

`accelerate launch` has 1 for all but 0: there the run's manifest (status, why) and the last line tell.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

EXIT_FAULT = 1
EXIT_MISTAKE = 2
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141


class ConfigError(ValueError):
    """A value or a combination that cannot work; the message names it, what is allowed and the remedy.

    Raised by every module for a mistake of the user's; launch scripts print it without a traceback. Always
    one plain line: control characters, which may come from a file's content, are written as escapes, and
    of a very long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if not message.isprintable():
            message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if len(message) > 2000:
            message = f"{message[:1400]} ... {message[-400:]}"
        super().__init__(message)


def a_few(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class Fault(RuntimeError):
    """Something failed under a running job; the message is one line that names it and the remedy."""


class Stopped(BaseException):
    """The run was asked to stop, and did. A BaseException: no handler of errors may take it for one."""


_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "make the file system writable, or give another --runs folder",
    errno.EACCES: "make it writable, or give another --runs folder",
    errno.EPERM: "make it writable, or give another --runs folder",
    errno.ENOENT: "restore its folder",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError inside becomes a Fault that names `path`, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "mend that")
        reason = error.strerror or str(error)
        raise Fault(f"cannot write {path}: {reason}; {remedy} and give the same command again") from error
