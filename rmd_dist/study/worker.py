"""Working through a study: claim a cell, run it, record what came of it, until none is left to run."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rmd_dist.config import ConfigError
from rmd_dist.faults import Stopped
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import run_folder
from rmd_dist.study.ledger import Claim, Ledger, Status
from rmd_dist.study.runner import (
    GRACE_SECONDS,
    POLL_SECONDS,
    Data,
    Running,
    Topology,
    in_use,
    outcome,
    start,
)

IDLE_SECONDS = 5.0  # between looks at what other workers do
LOOK_SECONDS = 5.0  # between looks at what a cell has measured

Hopeless = Callable[[Cell, Sequence[tuple[int, float]]], bool]
"""Whether a cell with this curve, (step, accuracy), is to be stopped early."""


@dataclass
class Tally:
    """What one worker did."""

    finished: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Worker:
    """Runs cells of a study until none is left that it can run.

    Args:
        folder: the study's.
        cells: all its cells, in the order in which they are wanted.
        say: prints a line.
        hopeless: stops a cell early.
        tag: the scalar that is recorded while a cell runs, and in the end is what the study maximises.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Cell],
        ledger: Ledger,
        topology: Topology,
        data: Data,
        say: Callable[[str], None],
        *,
        hopeless: Hopeless | None = None,
        tag: str = "test/accuracy",
    ) -> None:
        self.folder, self.ledger, self.topology, self.data = folder, ledger, topology, data
        self.cells = {cell.key: cell for cell in cells}
        self.say, self.hopeless, self.tag = say, hopeless, tag
        self.tally = Tally()
        self._stop = threading.Event()
        self._abandoned = False

    def ask_to_stop(self) -> None:
        """Have the cell under way saved, and given back."""
        self._stop.set()

    def abandon(self) -> None:
        """End the cell under way at once; its newest checkpoint stays."""
        self._abandoned = True
        self._stop.set()

    def run(self) -> None:
        """Work until nothing waits that could run. Returns early when asked to stop."""
        while not self._stop.is_set():
            for key in self.ledger.recover():
                self.say(f"{key}: its worker is gone, so it waits again")
            status = self.ledger.status()
            claim = self.ledger.claim(self._ready(status))
            if claim is not None:
                self._one(claim, status)
            elif self._may_become_ready(status):
                self._stop.wait(IDLE_SECONDS)
            else:
                return

    def _ready(self, status: dict[str, Status]) -> list[str]:
        """Cells that wait and whose teacher, if they need one, is there."""
        return [
            cell.key
            for cell in self.cells.values()
            if status[cell.key].state == "waiting"
            and (cell.needs is None or status[cell.needs].state == "finished")
        ]

    def _may_become_ready(self, status: dict[str, Status]) -> bool:
        """Whether a cell waits for a teacher that somebody is pretraining."""
        return any(
            status[cell.key].state == "waiting"
            and cell.needs is not None
            and status[cell.needs].state in ("running", "waiting")
            for cell in self.cells.values()
        )

    def _one(self, claim: Claim, status: dict[str, Status]) -> None:
        """Run one claimed cell and record its end."""
        cell = self.cells[claim.key]
        done = sum(status[key].state in ("finished", "pruned") for key in self.cells)
        self.say(f"[{done + 1}/{len(self.cells)}] {cell.key}: {cell.steps} steps")
        if not self._free(cell):
            self.ledger.give_back(claim, "the study was stopped")
            return
        began = time.monotonic()
        try:
            running = start(self.folder, cell, self.topology, self.data)
        except ConfigError as error:
            self._failed(claim, str(error))
            return
        pruned = False
        try:
            pruned = self._watch(running, cell, claim)
        finally:
            if not running.ended():
                running.kill()
            running.close()
        seconds = time.monotonic() - began
        results = outcome(running, seconds)
        if results is not None:
            self.ledger.finish(claim, results["last"], results)
            self.tally.finished.append(cell.key)
            self.say(f"{cell.key}: {100 * results['last']:.2f} % after {duration(seconds)}")
        elif pruned:
            curve = running.curve(self.tag)
            self.ledger.finish(claim, curve[-1][1], {"seconds": seconds}, pruned=True)
            self.tally.pruned.append(cell.key)
            self.say(f"{cell.key}: stopped early at step {curve[-1][0]}, {100 * curve[-1][1]:.2f} %")
        elif running.stopping:
            self.ledger.give_back(claim, "the study was stopped")
            self.say(f"{cell.key}: saved, to be continued")
        else:
            self._failed(claim, running.last_words())

    def _free(self, cell: Cell) -> bool:
        """Wait while the process of a killed worker saves the cell; False if asked to stop meanwhile."""
        deadline = time.monotonic() + GRACE_SECONDS
        while in_use(run_folder(self.folder, cell)) and time.monotonic() < deadline:
            if self._stop.wait(POLL_SECONDS):
                return False
        return True

    def _failed(self, claim: Claim, why: str) -> None:
        self.ledger.fail(claim, why)
        self.tally.failed[claim.key] = why
        self.say(f"{claim.key}: FAILED: {why}")

    def _watch(self, running: Running, cell: Cell, claim: Claim) -> bool:
        """Until the process ends: show signs of life, record accuracies; True if it was stopped early."""
        curve: list[tuple[int, float]] = []
        pruned, next_look = False, 0.0
        deadline: float | None = None
        while not running.ended():
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_SECONDS
                self._look(running, claim, curve)
                if self.hopeless and curve and not running.stopping and self.hopeless(cell, curve):
                    pruned = True
                    running.stop()
            if self._stop.is_set() and not running.stopping:
                running.stop()
            if running.stopping:
                deadline = deadline or now + GRACE_SECONDS
                if now > deadline or self._abandoned:
                    running.kill()
            running.wait(POLL_SECONDS)
        self._look(running, claim, curve)
        return pruned

    def _look(self, running: Running, claim: Claim, curve: list[tuple[int, float]]) -> None:
        """Show signs of life; add to `curve`, and to the ledger, what has been measured since."""
        self.ledger.beat(claim)
        for step, value in running.news(self.tag):
            self.ledger.report(claim, step, value)
            curve.append((step, value))


class Crew:
    """Several workers of one process, each with a share of its cores and GPUs; a Ctrl-C stops them all."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._ended: queue.Queue[BaseException | None] = queue.Queue()

    def run(self) -> Tally:
        """Work until all are done. Raises Stopped when asked to stop, and whatever a worker raised."""
        for worker in self.workers:
            threading.Thread(target=self._work, args=(worker,)).start()
        errors: list[BaseException] = []
        stopped = False
        for _ in self.workers:
            # Not Thread.join: a signal that raises in it makes Python 3.11 take the thread for ended.
            try:
                error = self._next()
            except (KeyboardInterrupt, Stopped):
                stopped = True
                self._each(Worker.ask_to_stop)
                error = self._patiently()
            if error is not None:
                errors.append(error)
                self._each(Worker.ask_to_stop)
        if errors:
            raise errors[0]
        if stopped:
            raise Stopped("the cells under way are saved; the same command continues")
        return self.tally()

    def _patiently(self) -> BaseException | None:
        """The end of one more worker; a second Ctrl-C ends its cells at once."""
        try:
            return self._next()
        except (KeyboardInterrupt, Stopped):
            self._each(Worker.abandon)
            return self._next()

    def _next(self) -> BaseException | None:
        """How the next worker ended. It polls: a signal may reach another thread, and wake none here."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ended.get(timeout=POLL_SECONDS)

    def _each(self, do: Callable[[Worker], None]) -> None:
        for worker in self.workers:
            do(worker)

    def tally(self) -> Tally:
        """What all of them did."""
        whole = Tally()
        for worker in self.workers:
            whole.finished += worker.tally.finished
            whole.pruned += worker.tally.pruned
            whole.failed |= worker.tally.failed
        return whole

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:  # raised by run(), in the main thread
            self._ended.put(error)
        else:
            self._ended.put(None)


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
