"""Attempts at a study's cells: which worker runs which, and how each attempt ended.

STUDY/attempts/CELL.1.json, CELL.2.json ... are a cell's attempts in order. A worker claims a cell by
making the file of its next attempt, which succeeds for one worker alone, on any file system. It keeps the
file locked, and the kernel lets go when the worker ends, however it ends. Where the locks of one machine
do not reach another, the file's time of change, which a worker renews, shows that it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import is_held, read_json, to_json, write_json

SILENCE_SECONDS = 600.0  # after which a worker on another machine counts as gone


class Overtaken(Exception):
    """Another worker took this one for gone, and has its cell now."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell."""

    worker: str
    """HOST:PID of who made it."""
    began: float
    """Seconds since the epoch."""
    state: str = "running"
    """What the attempt left the cell as: waiting, finished, pruned or failed; running while it goes on."""
    why: str | None = None
    """What ended it, if not the cell's own end."""
    seconds: float = 0.0
    """How long it took."""


class Claim:
    """A cell that this worker, and no other, runs: its newest attempt, locked until `end` or `close`."""

    def __init__(self, study: Path, key: str, number: int, attempt: Attempt, lock: IO[str]) -> None:
        self.key = key
        self._attempt, self._lock = attempt, lock
        self._path, self._next = (_path(study, key, n) for n in (number, number + 1))

    def beat(self) -> None:
        """Show a sign of life. Raises Overtaken if another worker has begun the next attempt."""
        with contextlib.suppress(OSError):  # a file server that is away comes back, or the run fails
            os.utime(self._path)
        if self._next.exists():
            raise Overtaken

    def end(self, state: str, why: str | None = None) -> None:
        """Write down what the attempt leaves the cell as. Raises Fault if that cannot be written."""
        seconds = time.time() - self._attempt.began
        with self._lock, writing(self._path):
            write_json(self._path, asdict(replace(self._attempt, state=state, why=why, seconds=seconds)))

    def close(self) -> None:
        """Let go of the cell, as a worker that is killed does."""
        self._lock.close()


def claim(study: Path, key: str, number: int) -> Claim | None:
    """Begin attempt `number` (from 1) at a cell; None if another worker has begun it already.

    Raises ConfigError if the study's folder cannot be written, or has no locks.
    """
    path = _path(study, key, number)
    attempt = Attempt(f"{socket.gethostname()}:{os.getpid()}", time.time())
    try:
        path.parent.mkdir(exist_ok=True)
        # Locked and complete before it has its name: whoever sees it sees that its worker lives.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        lock = temporary.open("x")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(to_json(asdict(attempt)))
            lock.flush()
            os.link(temporary, path)
        except OSError:
            lock.close()
            raise
        finally:
            temporary.unlink()
    except FileExistsError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot write to {path.parent}, or lock files in it ({error.strerror}); make it writable, or "
            "give another --out"
        ) from error
    return Claim(study, key, number, attempt, lock)


def read_attempts(study: Path, keys: Iterable[str]) -> dict[str, list[Attempt]]:
    """Key -> the attempts at each of these cells, in order; one whose worker is gone leaves its cell waiting.

    Raises ConfigError if one of them cannot be read.
    """
    last = dict.fromkeys(keys, 0)
    for path in (study / "attempts").glob("*.json"):
        key, _, number = path.stem.rpartition(".")
        if key in last and number.isdecimal():
            last[key] = max(last[key], int(number))
    return {key: [_read(_path(study, key, n)) for n in range(1, m + 1)] for key, m in last.items()}


def _read(path: Path) -> Attempt:
    attempt, _ = _recorded(path)
    if attempt.state != "running":
        return attempt
    held = is_held(path)
    attempt, changed = _recorded(path)  # anew: it may have ended just before its lock was looked at
    if attempt.state != "running":
        return attempt
    here = attempt.worker.rpartition(":")[0] == socket.gethostname()
    attempt = replace(attempt, seconds=max(0.0, changed - attempt.began))
    if held or (not here and time.time() - changed < SILENCE_SECONDS):
        return attempt
    return replace(attempt, state="waiting", why="its worker is gone")


def _recorded(path: Path) -> tuple[Attempt, float]:
    """An attempt as its file has it, and when that was changed last, in seconds since the epoch."""
    try:
        changed = path.stat().st_mtime
        return Attempt(**read_json(path)), changed
    except (FileNotFoundError, ValueError, TypeError):  # removed, or torn by a machine that went down
        return Attempt("?", 0.0, "waiting", "its record is damaged"), 0.0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); make it readable") from error


def _path(study: Path, key: str, number: int) -> Path:
    return study / "attempts" / f"{key}.{number}.json"
