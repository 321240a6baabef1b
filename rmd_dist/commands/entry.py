"""The way out of every command: what ended it is one line on stderr and an exit code (errors.py)."""

from __future__ import annotations

import errno
import faulthandler
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from rmd_dist.commands import screen
from rmd_dist.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_MISTAKE,
    EXIT_STOPPED,
    EXIT_UNREAD,
    ConfigError,
    Fault,
    Stopped,
)

_FIRST_SECONDS = 2.0  # that a machine's first rank has to say what another one would say too


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a launch script's `main` and exit; what ended it is one line on stderr and a code (errors.py)."""
    _by_utf8()
    screen.install()
    faulthandler.enable(2)  # what ends a process by SIGSEGV or SIGBUS says where it was
    threading.excepthook = functools.partial(_tell_of_thread, threading.excepthook)
    try:
        code = main() or 0
    except SystemExit as ended:  # argparse's
        code = int(ended.code or 0)
    except ConfigError as error:
        code = _tell(f"error: {error}", EXIT_MISTAKE)
    except Fault as error:
        code = _tell(f"error: {error}", EXIT_FAULT)
    except Stopped as stop:
        code = _tell(f"stopped: {stop}", EXIT_STOPPED)
    except KeyboardInterrupt:
        code = _tell("interrupted: the same command continues from what was saved", EXIT_INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        code = _tell(f"error: {type(error).__name__} (a bug, see the traceback): {error}", EXIT_FAULT)
    if not code and (failure := screen.lost()):
        code = _unread(failure)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and _number("WORLD_SIZE", 1) > 1:
        os._exit(code)  # an orderly exit would wait for ranks that may not come, or abort in gloo's threads
    sys.exit(code)


def _by_utf8() -> None:
    """Start again where Python takes file names, arguments too, for ASCII: LC_ALL=C with PYTHONUTF8=0."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _unread(failure: OSError) -> int:
    """The exit code of a command whose output has not arrived; quiet where its reader had read enough."""
    if failure.errno != errno.EPIPE:
        return _tell(f"error: cannot write to standard output: {failure.strerror}", EXIT_FAULT)
    # A launcher would make a failure of it.
    return 0 if {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys() else EXIT_UNREAD


def _number(name: str, otherwise: int) -> int:
    """What a launcher has set; one that is no number is refused elsewhere (parallel/environment.py)."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise


def _tell_of_thread(
    usual: Callable[[threading.ExceptHookArgs], object], what: threading.ExceptHookArgs
) -> None:
    """A traceback for what ended a thread, but for TensorBoard's: its next call raises that."""
    if not type(what.thread).__module__.startswith("tensorboard."):
        usual(what)


def _tell(line: str, code: int) -> int:
    """Print `line` once a machine: its first rank does, another one if the first has nothing to say."""
    local_rank, first = _number("LOCAL_RANK", 0), True
    if _number("WORLD_SIZE", 1) > 1 and "rmd_dist.parallel.collectives" in sys.modules:
        from rmd_dist import parallel

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it when the first rank has ended
        parallel.publish_failure(line)
        first = (
            local_rank == 0
            or "LOCAL_WORLD_SIZE" not in os.environ  # started by hand: nobody knows of the others here
            or (
                parallel.world_size() > 1
                and not parallel.failure_of(parallel.rank() - local_rank, _FIRST_SECONDS)
            )
        )
        line = line if local_rank == 0 else f"{line} (rank {os.environ.get('RANK')})"
    elif local_rank and "LOCAL_WORLD_SIZE" in os.environ:
        first = False
    if first:
        print(line, file=sys.stderr, flush=True)
    return code
