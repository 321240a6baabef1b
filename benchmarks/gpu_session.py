"""Processes of `gpu.py`: each with a limit, a log, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rmd_dist.files import to_json

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
CORES = len(os.sched_getaffinity(0))


@dataclass
class Session:
    """One call of the command: where it writes, what it runs on, how long it may take."""

    out: Path
    device: str
    data: Path | None
    deadline: float
    results: dict[str, Any] = field(default_factory=lambda: {"parts": {}})
    _running: set[subprocess.Popen[str]] = field(default_factory=set)

    @property
    def small(self) -> bool:
        """Without a GPU everything is made small."""
        return self.device == "cpu"

    def left(self, limit: float) -> float:
        """Seconds that something may take now, given its limit on a GPU."""
        return max(1.0, min(3 * limit if self.small else limit, self.deadline - time.monotonic()))

    def write(self) -> None:
        """The results so far, whole or not at all."""
        temporary = self.out / ".gpu.json.tmp"
        temporary.write_text(to_json(self.results, indent=1) + "\n")
        temporary.replace(self.out / "gpu.json")

    def start(
        self,
        log: str,
        *command: str,
        threads: int = 0,
        piped: bool = False,
        more: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """A process of this Python in the project's folder; what it prints goes to a log, or piped to us.

        `more`: variables of its environment.
        """
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "passive",  # many processes share the cores
            "TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor"),  # what one compiles others find
            "TORCHINDUCTOR_COMPILE_THREADS": os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "4"),
        }
        environment |= more or {}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with (self.out / f"{log}.log").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, start_new_session=True, text=True,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else file, stderr=file if piped else subprocess.STDOUT,
            )  # fmt: skip
        self._running.add(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kill a process and all that it has started, if anything of them is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._running.discard(process)

    def end_all(self) -> None:
        """For the end of the command, however it ends."""
        for process in list(self._running):
            self.end(process)

    def run(self, log: str, limit: float, *command: str, threads: int = 0) -> str | None:
        """Run to the end, or past the limit until it is stopped; returns None, or what went wrong."""
        process = self.start(log, *command, threads=threads)
        try:
            code = process.wait(limit)
            return None if code == 0 else f"exit code {code}: {self.last_line(log)}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # a run then saves, and records what it has measured
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            return f"stopped after {limit:.0f} s"
        finally:
            self.end(process)

    def last_line(self, log: str) -> str:
        """The last line that a process has printed."""
        lines = (self.out / f"{log}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "nothing was printed"

    def benchmark(self, name: str, limit: float, *words: str) -> dict[str, Any]:
        """Run a benchmark that writes its rows to a file as they come: those, and what went wrong."""
        file = self.out / f"{name}.json"
        file.unlink(missing_ok=True)
        error = self.run(name, self.left(limit), *words, "--device", self.device, "--out", str(file))
        found = json.loads(file.read_text()) if file.exists() else []
        rows = found["rows"] if isinstance(found, dict) else found
        return {"rows": rows} | ({"error": error} if error else {})


class Server:
    """A process that answers each line it is sent by a line that begins with `answer:`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()

    def _listen(self, lines: TextIO) -> None:
        for line in lines:
            if line.startswith("answer:"):  # libraries print, too
                self._answers.put(line.removeprefix("answer:").strip())
        self._answers.put(None)

    def ask(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, limit: float) -> str:
        """The next answer. Raises RuntimeError if there is none in time, or the process has ended."""
        try:
            found = self._answers.get(timeout=limit)
        except queue.Empty:
            raise RuntimeError(f"a process said nothing for {limit:.0f} s") from None
        if found is None:
            raise RuntimeError(f"a process ended with exit code {self.process.wait(10)}, see its log")
        return found


@contextlib.contextmanager
def servers(
    session: Session, name: str, count: int, *command: str, more: dict[str, str] | None = None
) -> Iterator[list[Server]]:
    """`count` servers of the same command, killed afterwards."""
    processes = [session.start(f"{name}-{n}", *command, piped=True, more=more) for n in range(count)]
    try:
        yield [Server(process) for process in processes]
    finally:
        for process in processes:
            session.end(process)
