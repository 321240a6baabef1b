"""Two or more sides of a benchmark, each in a process of its own, whose passes take turns."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import psutil

Pass = Callable[[int], int]
"""One pass of an epoch: how many images it has delivered."""


def serve(one_pass: Pass, min_seconds: float) -> None:
    """In a side's process: for each line of stdin one timed pass; prints its images/s.

    A pass that is shorter than `min_seconds` is repeated within it.
    """
    epoch = 0
    for _ in sys.stdin:
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < min_seconds:
            count += one_pass(epoch)
            epoch += 1
        print(count / (time.perf_counter() - start), flush=True)


class Side:
    """A process that serves passes of one side on demand, watched for its memory.

    Args:
        script: what serves, with `--serve`.
        options: its other flags and their values.
        memory: bytes of a process, of each kind that is watched: it and its children count together.
        every: seconds between two looks at the memory.
    """

    def __init__(
        self,
        script: str,
        options: Mapping[str, Any],
        memory: Callable[[int], Sequence[int]],
        every: float,
    ) -> None:
        command = [sys.executable, script]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rates: list[float] = []
        self.memory, self.every = memory, every
        self.peaks: list[int] = []

    def one_pass(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while not select.select([self.process.stdout], [], [], self.every)[0]:
            self.sample_memory()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended with exit code {self.process.wait()}")
        self.sample_memory()
        self.rates.append(float(line))

    def sample_memory(self) -> None:
        watched = psutil.Process(self.process.pid)
        pids = [watched.pid, *(child.pid for child in watched.children(recursive=True))]
        now = [sum(kind) for kind in zip(*map(self.memory, pids), strict=True)]
        self.peaks = [max(pair) for pair in zip(self.peaks or now, now, strict=True)]

    def close(self) -> dict[str, Any]:
        """End the process. The first pass was to warm up and does not count."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        return {"rate": median(self.rates[1:]), "rates": self.rates[1:]}
