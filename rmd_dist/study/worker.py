"""Working through a study: claim a cell, run it, record what came of it, until none is left to run."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError

from rmd_dist.config import ConfigError
from rmd_dist.data.lock import is_held
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
    outcome,
    start,
)

IDLE_SECONDS = 5.0  # between looks at what other workers do
LOOK_SECONDS = 5.0  # between looks at what a cell has measured

Curve = list[tuple[int, float]]
"""(step, accuracy)"""

Hopeless = Callable[[Cell, Sequence[tuple[int, float]]], bool]
"""Whether a cell with this curve, (step, accuracy), is to be stopped early."""


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
        hopeless: stops a cell early.
        tag: the scalar of students that is recorded while they run; its last value is what the study
            maximises.
        together: stay until no cell runs anywhere, because what comes next depends on all.
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
        together: bool = False,
    ) -> None:
        self.folder, self.ledger, self.topology, self.data = folder, ledger, topology, data
        self.cells = {cell.key: cell for cell in cells}
        self.say, self.hopeless, self.tag, self.together = say, hopeless, tag, together
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
        """Whether a cell waits for a teacher that somebody is pretraining, or others are to be waited for."""
        if self.together and any(status[key].state == "running" for key in self.cells):
            return True
        return any(
            status[cell.key].state == "waiting"
            and cell.needs is not None
            and status[cell.needs].state in ("running", "waiting")
            for cell in self.cells.values()
        )

    def _one(self, claim: Claim, status: dict[str, Status]) -> None:
        """Run one claimed cell and record its end."""
        cell = self.cells[claim.key]
        done = sum(status[key].done for key in self.cells)
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
        curve: Curve = []
        try:
            pruned = self._watch(running, cell, claim, curve)
        except UpdateFinishedTrialError:
            self.say(f"{cell.key}: another worker took this one for lost, and has the cell now")
            return
        finally:
            if not running.ended():
                running.kill()
            running.close()
        try:
            self._record(claim, running, curve, time.monotonic() - began, pruned=pruned)
        except UpdateFinishedTrialError:
            self.say(f"{cell.key}: another worker took this one for lost, and has recorded the cell")
        except (ConfigError, OSError) as error:  # a damaged manifest, a full disk
            self._failed(claim, str(error))

    def _record(self, claim: Claim, running: Running, curve: Curve, seconds: float, *, pruned: bool) -> None:
        """Write down what came of a cell whose process has ended."""
        results = outcome(running, seconds)
        if results is not None:
            # What the study maximises is what was watched: the test set stays out of a search for K.
            self.ledger.finish(claim, curve[-1][1] if curve else results["last"], results)
            self.tally.finished.append(claim.key)
            self.say(f"{claim.key}: {100 * results['last']:.2f} % after {duration(seconds)}")
        elif pruned:
            self.ledger.finish(claim, curve[-1][1], {"seconds": seconds}, pruned=True)
            self.tally.pruned.append(claim.key)
            self.say(f"{claim.key}: stopped early at step {curve[-1][0]}, {100 * curve[-1][1]:.2f} %")
        elif running.stopping or running.stopped():
            self.ledger.give_back(claim, "the study was stopped")
            self.say(f"{claim.key}: saved, to be continued")
        else:
            self._failed(claim, running.last_words())

    def _free(self, cell: Cell) -> bool:
        """Wait while the process of a killed worker saves the cell; False if asked to stop meanwhile."""
        deadline = time.monotonic() + GRACE_SECONDS
        while is_held(run_folder(self.folder, cell) / ".lock") and time.monotonic() < deadline:
            if self._stop.wait(POLL_SECONDS):
                return False
        return True

    def _failed(self, claim: Claim, why: str) -> None:
        self.ledger.fail(claim, why)
        self.tally.failed[claim.key] = why
        self.say(f"{claim.key}: FAILED: {why}")

    def _watch(self, running: Running, cell: Cell, claim: Claim, curve: Curve) -> bool:
        """Until the process ends: show signs of life, add to `curve`; True if it was stopped early."""
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

    def _look(self, running: Running, claim: Claim, curve: Curve) -> None:
        """Show signs of life; add to `curve`, and to the ledger, what has been measured since."""
        self.ledger.beat(claim)
        for step, value in running.news(self.tag):
            self.ledger.report(claim, step, value)
            curve.append((step, value))


class Crew:
    """Several workers of one process, each with a share of its cores and GPUs; a signal stops them all."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._ended: queue.Queue[BaseException | None] = queue.Queue()
        self._signals = 0

    def run(self) -> Tally:
        """Work until all are done, in the main thread. Raises Stopped after a signal, or what a worker did.

        The first SIGINT, SIGTERM or SIGHUP has the cells under way saved, a second one ends them at once.
        """
        errors: list[BaseException] = []
        with self._signals_counted():
            for worker in self.workers:
                threading.Thread(target=self._work, args=(worker,)).start()
            for _ in self.workers:
                if (error := self._next()) is not None:
                    errors.append(error)
                    self._each(Worker.ask_to_stop)
        if errors:
            raise errors[0]
        if self._signals:
            raise Stopped("the cells under way are saved; the same command continues")
        return self.tally()

    def _next(self) -> BaseException | None:
        """How the next worker ended; meanwhile signals are passed on.

        By polling: a signal may reach any thread, and what a handler raised could end this one anywhere.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ended.get(timeout=POLL_SECONDS)
            if self._signals:
                self._each(Worker.ask_to_stop if self._signals == 1 else Worker.abandon)

    @contextlib.contextmanager
    def _signals_counted(self) -> Iterator[None]:
        """Count the signals that ask to stop; those that are ignored already, as under nohup, stay so."""

        def count(_number: int, _frame: object) -> None:
            self._signals += 1

        wanted = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN
        ]
        before = {number: signal.signal(number, count) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _each(self, do: Callable[[Worker], None]) -> None:
        for worker in self.workers:
            do(worker)

    def tally(self) -> Tally:
        """What all of them did."""
        whole = Tally()
        for worker in self.workers:
            whole.add(worker.tally)
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
