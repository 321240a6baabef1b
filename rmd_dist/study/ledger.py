"""Which cells of a study wait, run, are done or failed: an Optuna study that any number of workers share.

Each attempt at a cell is one Optuna trial, found by its user attribute `cell`. Of a cell's trials the first
that is waiting, running, complete or pruned counts; the others are attempts that ended, and duplicates that
two workers entered at the same moment. Only a trial that counts is ever claimed, so no cell runs twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from rmd_dist.config import ConfigError
from rmd_dist.data.lock import exclusive
from rmd_dist.study.cells import Cell

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""Optuna's states, in this package's words."""

SILENCE_SECONDS = (
    600.0  # after which a worker on another machine counts as lost; clocks may differ by minutes
)
SQLITE, JOURNAL = "optuna.db", "optuna.journal"
INTERRUPTED = "interrupted"  # beginning of `why` of an attempt that was cut short, not failed


@dataclass(frozen=True)
class Status:
    """Where a cell stands, by its trial that counts."""

    state: str
    """waiting, running, finished, pruned or failed."""
    why: str | None
    worker: str | None
    """HOST:PID of who ran it last."""
    results: dict[str, float]
    """last, best_on_test and selected accuracy of a finished cell, seconds, step_seconds."""
    intermediate: dict[int, float]
    """Step -> what was reported while it ran."""
    attempts: int
    trial: int
    """Optuna's number of the trial."""


@dataclass(frozen=True)
class Claim:
    """A cell that this worker, and no other, runs."""

    key: str
    trial_id: int


class Ledger:
    """The Optuna study of the folder `folder`, in `storage`; what one worker does to it.

    Args:
        folder: the study's; its name is the Optuna study's.
        storage: `sqlite` or `journal`, a file in the folder; a database URL; None: the file that is
            there, else sqlite.
    Raises ConfigError if the storage cannot be reached.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._alive: IO[bytes] | None = None
        try:
            self._storage = _open(folder, storage)
            study = optuna.create_study(
                storage=self._storage, study_name=folder.name, direction="maximize", load_if_exists=True
            )
            self._study = self._storage.get_study_id_from_name(study.study_name)
        except ConfigError:
            raise
        except Exception as error:  # drivers raise what they like, and may be missing
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"cannot open the study's storage {storage or SQLITE}: {said}") from error

    def enter(self, cells: Sequence[Cell]) -> int:
        """Add what is not there yet, waiting; returns how many. Raises ConfigError if a cell has changed."""
        with self._locked():
            known = {trial.user_attrs["cell"]: trial for trial in self._trials()}
            changed = [
                c.key for c in cells if c.key in known and known[c.key].user_attrs["digest"] != c.digest
            ]
            if changed:
                raise ConfigError(
                    f"{self.folder} began with other settings of {len(changed)} cells, such as {changed[0]}; "
                    "give the old ones, or another --out"
                )
            new = [cell for cell in cells if cell.key not in known]
            for cell in new:
                self._enqueue(cell.key, cell.digest)
            return len(new)

    def status(self) -> dict[str, Status]:
        """Key -> where the cell stands, of every cell ever entered."""
        by_cell: dict[str, list[FrozenTrial]] = {}
        for trial in self._trials():
            by_cell.setdefault(trial.user_attrs["cell"], []).append(trial)
        return {key: _status(trials) for key, trials in by_cell.items()}

    def claim(self, keys: Iterable[str]) -> Claim | None:
        """Take the first of `keys` that waits; None if none does."""
        with self._locked():
            waiting = {
                trial.user_attrs["cell"]: trial.number
                for trial in _counting(self._trials())
                if trial.state == TrialState.WAITING
            }
            for key in keys:
                if key in waiting and (claim := self._take(key, waiting[key])):
                    return claim
        return None

    def _take(self, key: str, number: int) -> Claim | None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study, number)
        claim = Claim(key, trial_id)
        self._live()
        try:
            # Said before, so that a claim has a name even if this process ends in between, and after, because
            # a worker on another machine may have tried the same.
            self._sign(claim)
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        self._sign(claim)
        return claim

    def _sign(self, claim: Claim) -> None:
        self._storage.set_trial_user_attr(claim.trial_id, "worker", self.worker)
        self.beat(claim)

    def beat(self, claim: Claim) -> None:
        """Say that the cell is still being run."""
        self._storage.set_trial_user_attr(claim.trial_id, "beat", time.time())

    def report(self, claim: Claim, step: int, value: float) -> None:
        """Record an accuracy in [0, 1] on the way."""
        self._storage.set_trial_intermediate_value(claim.trial_id, step, value)

    def finish(self, claim: Claim, value: float, results: dict[str, float], *, pruned: bool = False) -> None:
        """The cell is done, or stopped early as hopeless; `value` is what the study maximises."""
        self._storage.set_trial_user_attr(claim.trial_id, "results", results)
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._storage.set_trial_state_values(claim.trial_id, state, [value])

    def fail(self, claim: Claim, why: str) -> None:
        """The attempt failed; it stays so until it is asked for again."""
        self._end(claim.trial_id, why)

    def give_back(self, claim: Claim, why: str) -> None:
        """The attempt was cut short: the cell waits again, and will continue from its checkpoint."""
        digest = str(self._storage.get_trial(claim.trial_id).user_attrs["digest"])
        self._end(claim.trial_id, f"{INTERRUPTED}: {why}")
        self._enqueue(claim.key, digest)

    def retry(self, keys: Iterable[str]) -> list[str]:
        """Have failed cells wait again; returns those that did fail."""
        with self._locked():
            by_key = {t.user_attrs["cell"]: t for t in _counting(self._trials())}
            failed = [key for key in keys if key in by_key and by_key[key].state == TrialState.FAIL]
            for key in failed:
                self._enqueue(key, str(by_key[key].user_attrs["digest"]))
            return failed

    def recover(self) -> list[str]:
        """Have cells wait again whose worker is gone; returns their keys."""
        with self._locked():
            lost = [
                trial
                for trial in self._trials()
                if trial.state == TrialState.RUNNING and self._gone(trial.user_attrs)
            ]
            for trial in lost:
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)
                self.give_back(Claim(trial.user_attrs["cell"], trial_id), "its worker is gone")
            return [trial.user_attrs["cell"] for trial in lost]

    def _gone(self, attrs: dict[str, Any]) -> bool:
        """Whether the worker that claimed a trial has ended: on this machine the kernel knows."""
        worker = str(attrs.get("worker"))
        if worker.split(":")[0] != socket.gethostname():
            return time.time() - float(attrs.get("beat", 0.0)) > SILENCE_SECONDS
        path = self._lock_of(worker)
        if not path.exists():
            return True
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _live(self) -> None:
        """Hold this worker's lock file until the process ends, however it ends."""
        if self._alive is None:
            path = self._lock_of(self.worker)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._alive = path.open("wb")
            fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Give up this worker's lock. What it still runs counts as lost."""
        if self._alive is not None:
            self._lock_of(self.worker).unlink(missing_ok=True)
            self._alive.close()
            self._alive = None

    def _lock_of(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker.replace(':', '-')}.lock"

    def _end(self, trial_id: int, why: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "why", why)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _enqueue(self, key: str, digest: str) -> None:
        attrs = {"cell": key, "digest": digest}
        self._storage.create_new_trial(self._study, create_trial(state=TrialState.WAITING, user_attrs=attrs))

    def _trials(self) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(self._study, deepcopy=False)
        return [trial for trial in trials if "cell" in trial.user_attrs]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One worker of this machine at a time: SQLite lets two of them claim the same trial."""
        with exclusive(self.folder / ".ledger.lock"):
            yield


def _open(folder: Path, storage: str | None) -> BaseStorage:
    if storage is None:
        storage = "journal" if (folder / JOURNAL).exists() else "sqlite"
    if storage == "journal":
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    if storage == "sqlite":
        storage = f"sqlite:///{(folder / SQLITE).resolve()}"
    if "://" not in storage:
        raise ConfigError(
            f"storage = {storage!r} is not known; give sqlite, journal, or a URL such as postgresql://HOST/NAME"
        )
    options = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
    return RDBStorage(storage, engine_kwargs=options)


def _counting(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Of each cell the trial that counts."""
    by_cell: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        by_cell.setdefault(trial.user_attrs["cell"], []).append(trial)
    return [_current(attempts) for attempts in by_cell.values()]


def _current(attempts: Sequence[FrozenTrial]) -> FrozenTrial:
    """The first that has not failed; if all have, the last one."""
    standing = [trial for trial in attempts if trial.state != TrialState.FAIL]
    number: Callable[[FrozenTrial], int] = lambda trial: trial.number  # noqa: E731
    return min(standing, key=number) if standing else max(attempts, key=number)


def _status(attempts: Sequence[FrozenTrial]) -> Status:
    trial = _current(attempts)
    attrs = trial.user_attrs
    began = [a for a in attempts if a.state != TrialState.WAITING]
    return Status(
        state=STATES[trial.state],
        why=attrs.get("why"),
        worker=attrs.get("worker"),
        results=dict(attrs.get("results", {})),
        intermediate=dict(trial.intermediate_values),
        attempts=len(began),
        trial=trial.number,
    )
