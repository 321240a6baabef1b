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
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from rmd_dist.config import ConfigError
from rmd_dist.data.lock import exclusive, is_held
from rmd_dist.faults import Fault
from rmd_dist.files import write_json
from rmd_dist.reading import read_json
from rmd_dist.study.cells import Cell

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""Optuna's states, in this package's words."""

SILENCE_SECONDS = 600.0  # after which a worker on another machine counts as lost
PATIENCE_SECONDS = 300.0  # with a storage that cannot be reached
SQLITE, JOURNAL = "optuna.db", "optuna.journal"
SETTLED = "storage.json"


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

    @property
    def done(self) -> bool:
        """Whether nothing is left to run: it came to its end, or was stopped as hopeless."""
        return self.state in ("finished", "pruned")


@dataclass(frozen=True)
class Claim:
    """A cell that this worker, and no other, runs."""

    key: str
    trial_id: int


class Ledger:
    """The Optuna study of the folder `folder`, in `storage`; what one worker does to it.

    Args:
        folder: the study's.
        storage: `sqlite` or `journal`, a file in the folder; a database URL; None: what the study was
            begun with, else sqlite.
    Raises ConfigError if the storage cannot be reached, or is not the one the study was begun with.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._alive: IO[bytes] | None = None
        with self._locked():  # two that open a new SQLite file at once would both make its tables
            kind, name = _settle(folder, storage)
            try:
                self._storage = _Patient(_open(folder, kind, storage))
                study = optuna.create_study(
                    storage=self._storage.storage, study_name=name, direction="maximize", load_if_exists=True
                )
                self._study = self._storage.get_study_id_from_name(study.study_name)
            except Exception as error:  # drivers raise what they like, and may be missing
                told = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
                raise ConfigError(f"cannot open the study's storage ({storage or kind}): {told}") from error

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
        return {key: _status(attempts) for key, attempts in self._attempts().items()}

    def claim(self, keys: Iterable[str]) -> Claim | None:
        """Take the first of `keys` that waits; None if none does."""
        with self._locked():
            current = self._current()
            for key in keys:
                trial = current.get(key)
                if trial and trial.state == TrialState.WAITING and (claim := self._take(key, trial.number)):
                    return claim
        return None

    def _take(self, key: str, number: int) -> Claim | None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study, number)
        claim = Claim(key, trial_id)
        self._live()
        try:
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        self.beat(claim)
        return claim

    def beat(self, claim: Claim) -> None:
        """Say that the cell is still being run, and by whom.

        Raises UpdateFinishedTrialError, as `report` and `finish` do, if another worker has taken it for lost.
        """
        self._storage.set_trial_user_attr(claim.trial_id, "worker", self.worker)
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
        self._enqueue(claim.key, digest)  # first: a worker that is killed in between must leave no failure
        self._end(claim.trial_id, f"interrupted: {why}")

    def retry(self, keys: Iterable[str]) -> list[str]:
        """Have failed cells wait again; returns those that did fail."""
        with self._locked():
            current = self._current()
            failed = [key for key in keys if key in current and current[key].state == TrialState.FAIL]
            for key in failed:
                self._enqueue(key, str(current[key].user_attrs["digest"]))
            return failed

    def recover(self) -> list[str]:
        """Have cells wait again whose worker is gone; returns their keys."""
        with self._locked():
            lost = [t for t in self._trials() if t.state == TrialState.RUNNING and self._gone(t)]
            for trial in lost:
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)
                self.give_back(Claim(trial.user_attrs["cell"], trial_id), "its worker is gone")
            return [trial.user_attrs["cell"] for trial in lost]

    def _gone(self, trial: FrozenTrial) -> bool:
        """Whether the worker that claimed a trial has ended: on this machine the kernel knows."""
        worker = str(trial.user_attrs.get("worker"))
        if worker.split(":")[0] != socket.gethostname():
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - float(trial.user_attrs.get("beat", began)) > SILENCE_SECONDS
        return not is_held(self._lock_of(worker))

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

    def _attempts(self) -> dict[str, list[FrozenTrial]]:
        """Key -> the trials of each cell."""
        by_cell: dict[str, list[FrozenTrial]] = {}
        for trial in self._trials():
            by_cell.setdefault(trial.user_attrs["cell"], []).append(trial)
        return by_cell

    def _current(self) -> dict[str, FrozenTrial]:
        """Key -> the trial that counts of each cell."""
        return {key: _current(attempts) for key, attempts in self._attempts().items()}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One worker of this machine at a time: SQLite lets two of them claim the same trial."""
        with exclusive(self.folder / ".ledger.lock"):
            yield


def read_status(folder: Path, storage: str | None = None) -> dict[str, Status]:
    """Where the cells of a study stand; empty if it has not begun. Makes no storage of its own."""
    return Ledger(folder, storage).status() if (folder / SETTLED).exists() else {}


def _settle(folder: Path, storage: str | None) -> tuple[str, str]:
    """(sqlite, journal or database; name of the Optuna study), as the folder has it, or from now on."""
    asked = "database" if storage and "://" in storage else storage
    if asked not in (None, "sqlite", "journal", "database"):
        raise ConfigError(
            f"storage = {storage!r} is not known; give sqlite, journal, or a URL such as postgresql://HOST/NAME"
        )
    path = folder / SETTLED
    if not path.exists():
        # A name of its own, because studies of many folders may share one database.
        name = f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}"
        write_json(path, {"kind": asked or "sqlite", "study": name})
    try:
        settled = read_json(path)
        kind, name = str(settled["kind"]), str(settled["study"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); restore it, or give another --out") from error
    if asked not in (None, kind):
        raise ConfigError(
            f"{folder} keeps its ledger in another storage ({kind}) than {asked}; leave out --storage"
        )
    if kind == "database" and storage is None:
        raise ConfigError(f"{folder} keeps its ledger in a database; give its URL by --storage")
    return kind, name


def _open(folder: Path, kind: str, storage: str | None) -> BaseStorage:
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    if kind == "sqlite":
        url = URL.create("sqlite", database=str((folder / SQLITE).resolve()))
        return RDBStorage(url.render_as_string(), engine_kwargs={"connect_args": {"timeout": 60}})
    return RDBStorage(str(storage))


class _Patient:
    """A storage whose calls are tried again for a while where it cannot be reached."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.storage, name)

        def patiently(*args: Any, **kwargs: Any) -> Any:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    return call(*args, **kwargs)
                except StorageInternalError as error:
                    if time.monotonic() > deadline:
                        raise Fault(
                            f"the study's storage cannot be reached: {error.__cause__ or error}"
                        ) from error
                    time.sleep(1.0)

        return patiently


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
