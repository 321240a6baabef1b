"""Where the cells of a study stand: what their run folders say, and how the attempts at them ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import read_manifest, results_of
from rmd_dist.study.attempts import Attempt, claim, read_attempts
from rmd_dist.study.cells import Cell


@dataclass(frozen=True)
class Status:
    """Where a cell stands."""

    state: str
    """waiting, running, finished, pruned or failed."""
    why: str | None = None
    """Why it failed, or what ended its last attempt."""
    worker: str | None = None
    """HOST:PID of who ran it last."""
    attempts: int = 0
    """How often it was begun."""
    results: dict[str, float] = field(default_factory=dict)
    """last, best_on_test and selected accuracy of a finished cell; seconds of all its attempts together."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to run: it came to its end, or was stopped as hopeless."""
        return self.state in ("finished", "pruned")


def read_status(study: Path, cells: Iterable[Cell]) -> dict[str, Status]:
    """Key -> where each of these cells stands. Only reads."""
    cells = list(cells)
    attempts = read_attempts(study, (cell.key for cell in cells))
    return {cell.key: _status(cell.run_folder(study), attempts[cell.key]) for cell in cells}


def _status(run: Path, attempts: list[Attempt]) -> Status:
    """A run that has finished says so itself; else its last attempt counts, and before that its manifest."""
    seconds = {"seconds": sum(a.seconds for a in attempts)} if attempts else {}
    worker = attempts[-1].worker if attempts else None
    try:
        manifest = read_manifest(run)
        if manifest.get("status") == "finished":
            results = {kind: result.value for kind, result in results_of(run, manifest).items()}
            return Status("finished", None, worker, len(attempts), results | seconds)
    except ConfigError as error:
        manifest = {"status": "failed", "why": str(error)}
    if attempts and attempts[-1].state != "finished":
        return Status(attempts[-1].state, attempts[-1].why, worker, len(attempts), seconds)
    failed, why = manifest.get("status") == "failed", manifest.get("why")
    return Status("failed" if failed else "waiting", why and str(why), worker, len(attempts), seconds)


def retry(study: Path, cells: Iterable[Cell]) -> list[str]:
    """Have failed cells wait again; returns their keys."""
    asked = []
    for key, status in read_status(study, cells).items():
        if status.state == "failed" and (claimed := claim(study, key, status.attempts + 1)):
            claimed.end("waiting", "asked for again")
            asked.append(key)
    return asked
