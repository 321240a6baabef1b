"""Opens inputs in processes of their own, so that crashes, hangs and bombs can be told from errors.

A server that has imported everything forks one child for each input. The child may use MEMORY bytes more
than it starts with and SECONDS of time; what it becomes is one of OUTCOMES.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 10.0
MEMORY = 3 << 30  # address space
RESIDENT = 1200 << 20  # bytes: more than any reader may need for a small file
NOBODY = 65534

OUTCOMES = ("accepted", "error", "exception", "crash", "hang", "memory", "code run")
"""`error`: ConfigError in one line. The last five are defects."""


@dataclass(frozen=True)
class Result:
    """What became of one input."""

    outcome: str
    detail: str
    seconds: float


class Server:
    """`with Server() as server: server.open(target name, folder)`."""

    def __enter__(self) -> Server:
        root = Path(__file__).parents[2]
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server"],
            cwd=root,
            env=os.environ | single | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer()["ready"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def open(self, target: str, folder: Path, *, as_nobody: bool = False) -> Result:
        """Open the input in `folder` as `target` does. A file `canary` beside the folder is code run."""
        assert self._process.stdin is not None
        request = {"target": target, "folder": str(folder), "as_nobody": as_nobody}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Result(**self._answer())

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 120)[0]:
            self._process.kill()
            raise TimeoutError("the fuzz server does not answer")
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    from tests.fuzz.targets import TARGETS, make_yaml, open_yaml

    with tempfile.TemporaryDirectory() as folder:  # what is imported late, so that no child need do it
        make_yaml(Path(folder))
        open_yaml(Path(folder))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        result = _supervise(TARGETS[request["target"]].open, folder, request["as_nobody"])
        print(json.dumps(asdict(result)), file=out, flush=True)


def _supervise(work, folder: Path, as_nobody: bool) -> Result:  # type: ignore[no-untyped-def]
    before = sorted(folder.parent.iterdir())
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(work, folder, as_nobody, writing)
    os.close(writing)
    said = b""
    while True:
        left = started + SECONDS - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        said += piece
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    resident = (usage.ru_maxrss << 10) - _resident()
    if sorted(folder.parent.iterdir()) != before:
        return Result("code run", "something was written beside the input's folder", seconds)
    if seconds >= SECONDS:
        return Result("hang", f"no end after {SECONDS:g} s", seconds)
    if resident > RESIDENT:
        return Result("memory", f"{resident >> 20} MiB", seconds)
    if os.WIFSIGNALED(status) or not said:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Result("crash", f"signal {number}, status {status}", seconds)
    outcome, detail = json.loads(said)
    return Result(outcome, detail, seconds)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _child(work, folder: Path, as_nobody: bool, writing: int) -> None:  # type: ignore[no-untyped-def]
    """Never returns."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    outcome, detail = "accepted", ""
    try:
        from rmd_dist.errors import ConfigError

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        if as_nobody and os.geteuid() == 0:
            folder.chmod(0o777)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            work(Path())
        except ConfigError as error:
            if _ran_out(error):
                raise MemoryError from None
            text = str(error)
            plain = text.isprintable() and 0 < len(text) < 5000
            outcome, detail = ("error" if plain else "exception"), text[:2000]
            if not plain:
                detail = f"ConfigError of {len(text)} characters, not one plain line: {text[:200]!r}"
    except MemoryError:
        outcome, detail = "memory", "MemoryError"
    except BaseException as error:
        outcome = "exception"
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        with contextlib.suppress(Exception):
            detail = f"{type(error).__name__} at {where}: {str(error)[:200]}"
    with contextlib.suppress(OSError):
        os.write(writing, json.dumps([outcome, detail]).encode())
    os._exit(0)


def _ran_out(error: BaseException | None) -> bool:
    """Whether a MemoryError is behind `error`: only the limit kept it from taking more."""
    return error is not None and (isinstance(error, MemoryError) or _ran_out(error.__context__))


if __name__ == "__main__":
    _serve()
