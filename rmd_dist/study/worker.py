"""Working through a study: claim a cell, run it, record what came of it, until none is left to run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from rmd_dist.errors import ConfigError, Stopped
from rmd_dist.files import is_held
from rmd_dist.runs.folder import read_manifest, results_of
from rmd_dist.study.attempts import Claim, Overtaken, claim
from rmd_dist.study.cells import Cell
from rmd_dist.study.runner import GRACE_SECONDS, POLL_SECONDS, Data, Running, Topology, start
from rmd_dist.study.status import Status, read_status

IDLE_SECONDS = 5.0  # between looks at what other workers do
LOOK_SECONDS = 5.0  # between signs of life, and looks at what a cell has measured

Pruner = Callable[[Cell], str | None]
"""Where a running cell stands, in words, if it is to be stopped early; else None."""


@dataclass
class Tally:
    """What one worker did."""

    finished: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """What another one did, too."""
        self.finished += other.finished
        self.pruned += other.pruned
        self.failed |= other.failed


class Worker:
    """Runs cells of a study until none is left that it can run.

    Args:
        folder: the study's.
        cells: all its cells, in the order in which they are wanted.
        say: prints a line.
        pruner: stops students early.
        together: stay until no cell runs anywhere, because what comes next depends on all.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Cell],
        topology: Topology,
        data: Data,
        say: Callable[[str], None],
        *,
        pruner: Pruner | None = None,
        together: bool = False,
    ) -> None:
        self.folder, self.topology, self.data = folder, topology, data
        self.cells = {cell.key: cell for cell in cells}
        self.say, self.pruner, self.together = say, pruner, together
        self.tally = Tally()
        self._stop = threading.Event()
        self._at_once = False

    def ask_to_stop(self, *, at_once: bool = False) -> None:
        """Have the cell under way saved and given back; `at_once`: ended, its newest checkpoint stays."""
        self._at_once = self._at_once or at_once
        self._stop.set()

    def run(self) -> None:
        """Work until nothing waits that could run. Returns early when asked to stop."""
        while not self._stop.is_set():
            status = read_status(self.folder, self.cells.values())
            ready = self._ready(status)
            claims = (claim(self.folder, cell.key, status[cell.key].attempts + 1) for cell in ready)
            if claimed := next(filter(None, claims), None):
                with contextlib.closing(claimed):
                    self._one(claimed, status)
            elif ready:  # others were quicker
                self._stop.wait(POLL_SECONDS)
            elif self._may_become_ready(status):
                self._stop.wait(IDLE_SECONDS)
            else:
                return

    def _ready(self, status: dict[str, Status]) -> list[Cell]:
        """Cells that wait and whose teacher, if they need one, is there."""
        return [
            cell
            for cell in self.cells.values()
            if status[cell.key].state == "waiting"
            and (cell.needs is None or status[cell.needs].state == "finished")
        ]

    def _may_become_ready(self, status: dict[str, Status]) -> bool:
        """Whether a cell waits for a teacher that somebody is pretraining, or others are to be waited for."""
        if self.together and any(status[key].state == "running" for key in self.cells):
            return True
        return any(
            status[cell.key].state == "waiting"
            and cell.needs is not None
            and status[cell.needs].state in ("running", "waiting")
            for cell in self.cells.values()
        )

    def _one(self, claimed: Claim, status: dict[str, Status]) -> None:
        """Run one claimed cell and record its end."""
        cell, before = self.cells[claimed.key], status[claimed.key]
        done = sum(s.done for s in status.values())
        again = f", again ({before.why})" if before.attempts else ""
        self.say(f"[{done + 1}/{len(self.cells)}] {cell.key}: {cell.steps} steps{again}")
        try:
            if not self._free(cell, claimed):
                claimed.end("waiting", "the study was stopped")
                return
            began = time.monotonic()
            with start(self.folder, cell, self.topology, self.data) as running:
                pruned = self._watch(running, cell, claimed)
            self._record(claimed, running, pruned, time.monotonic() - began)
        except Overtaken:
            self.say(f"{cell.key}: another worker took this one for gone, and has the cell now")
        except ConfigError as error:  # of a folder that cannot be written, a damaged manifest
            self._failed(claimed, str(error))

    def _free(self, cell: Cell, claimed: Claim) -> bool:
        """Wait while the process of a killed worker saves the cell; False if asked to stop meanwhile."""
        deadline = time.monotonic() + GRACE_SECONDS
        while is_held(cell.run_folder(self.folder) / ".lock") and time.monotonic() < deadline:
            claimed.beat()
            if self._stop.wait(POLL_SECONDS):
                return False
        return True

    def _watch(self, running: Running, cell: Cell, claimed: Claim) -> str | None:
        """Until the process ends: show signs of life; where it stood, if it was stopped early."""
        pruned: str | None = None
        next_look, deadline = 0.0, None
        while not running.ended():
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_SECONDS
                claimed.beat()
                if self.pruner and cell.stage == "distill" and not running.stopping:
                    pruned = self.pruner(cell)
            if (self._stop.is_set() or pruned) and not running.stopping:
                running.stop()
            if running.stopping:
                deadline = deadline or now + GRACE_SECONDS
                if now > deadline or self._at_once:
                    running.kill()
            running.wait(POLL_SECONDS)
        return pruned

    def _record(self, claimed: Claim, running: Running, pruned: str | None, seconds: float) -> None:
        """Write down what came of a cell whose process has ended."""
        key, outcome = claimed.key, running.outcome()
        if outcome == "finished":
            last = results_of(running.folder, read_manifest(running.folder))["last"]
            claimed.end("finished")
            self.tally.finished.append(key)
            self.say(f"{key}: {100 * last.value:.2f} % after {duration(seconds)}")
        elif pruned:
            claimed.end("pruned", f"stopped early at {pruned}")
            self.tally.pruned.append(key)
            self.say(f"{key}: stopped early at {pruned}")
        elif outcome == "stopped":
            claimed.end("waiting", "the study was stopped")
            self.say(f"{key}: saved, to be continued")
        else:
            self._failed(claimed, running.last_words())

    def _failed(self, claimed: Claim, why: str) -> None:
        claimed.end("failed", why)
        self.tally.failed[claimed.key] = why
        self.say(f"{claimed.key}: FAILED: {why}")


def work(workers: Sequence[Worker]) -> Tally:
    """Run several workers of this process at once; what all of them did. Called in the main thread.

    The first SIGINT, SIGTERM or SIGHUP has the cells under way saved, a second one ends them at once. Raises
    Stopped after a signal, or what a worker raised, when all have stopped.
    """
    with _signals_counted() as signals, ThreadPoolExecutor(len(workers)) as pool:
        running = {pool.submit(worker.run) for worker in workers}
        done: set[Future[None]] = set()
        while running:
            # By polling: what a handler of signals raised could end this thread anywhere.
            ended, running = wait(running, POLL_SECONDS)
            done |= ended
            if signals or any(future.exception() for future in done):
                for worker in workers:
                    worker.ask_to_stop(at_once=len(signals) > 1)
    for future in done:
        future.result()
    if signals:
        raise Stopped("the cells under way are saved; the same command continues")
    tally = Tally()
    for worker in workers:
        tally.add(worker.tally)
    return tally


@contextlib.contextmanager
def _signals_counted() -> Iterator[list[int]]:
    """The signals so far that ask to stop; those that are ignored already, as under nohup, stay so."""
    received: list[int] = []
    wanted = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
