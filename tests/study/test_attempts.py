"""Attempts: every cell claimed once, by whoever; what is lost, failed or cut short comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from rmd_dist.errors import ConfigError
from rmd_dist.files import write_json
from rmd_dist.study import attempts
from rmd_dist.study.attempts import Claim, Overtaken, claim, read_attempts
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import read_study, write_specs
from rmd_dist.study.status import Status, read_status, retry
from tests.study.small import cells, spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def grid(tmp_path: Path) -> list[Cell]:
    return cells(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def _begin(folder: Path, cell: Cell) -> Claim | None:
    return claim(folder, cell.key, read_status(folder, [cell])[cell.key].attempts + 1)


def _stands(folder: Path, cell: Cell) -> Status:
    return read_status(folder, [cell])[cell.key]


def _finish(folder: Path, cell: Cell) -> None:
    """The manifest of a finished run."""
    cell.run_folder(folder).mkdir(parents=True)
    results = {"last": {"tag": "test/accuracy", "value": 0.7, "step": 66}}
    write_json(cell.run_folder(folder) / "manifest.json", {"status": "finished", "results": results})


CLAIM_ALL = """
import sys, time
from pathlib import Path
from rmd_dist.study.attempts import claim
folder, begin = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not begin.exists():
    time.sleep(0.001)
claims = {key: claim(folder, key, 1) for key in sys.argv[3:]}
print(*(key for key, claimed in claims.items() if claimed))
"""

CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from rmd_dist.study.attempts import claim
kept = claim(Path(sys.argv[1]), sys.argv[2], 1)
os.kill(os.getpid(), 9)
"""


def _python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def test_processes_that_want_the_same_cells_get_each_once(folder, tmp_path):
    keys = [f"symmetric0.4-cell{i}" for i in range(100)]
    processes = [_python(CLAIM_ALL, folder, tmp_path / "begin", *keys) for _ in range(3)]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    (tmp_path / "begin").touch()
    claimed = [key for process in processes for key in process.communicate(timeout=120)[0].split()]
    assert Counter(claimed) == Counter(keys)
    assert {len(found) for found in read_attempts(folder, keys).values()} == {1}
    assert not list((folder / "attempts").glob(".*"))


def test_a_cell_runs_while_its_claim_is_held_and_waits_when_it_is_let_go(folder, grid):
    claimed = _begin(folder, grid[0])
    assert claimed
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[1]).state) == ("running", "waiting")
    assert claim(folder, grid[0].key, 1) is None
    claimed.close()
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).why) == ("waiting", "its worker is gone")
    assert _begin(folder, grid[0])


def test_a_killed_worker_leaves_its_cell_waiting(folder, grid):
    assert _python(CLAIM_AND_DIE, folder, grid[0].key).wait(120) == -9
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).attempts) == ("waiting", 1)


def test_an_attempt_that_ends_while_it_is_looked_at_has_ended(folder, grid, monkeypatch):
    """Its lock is free then, but that is no sign of a dead worker."""
    claimed = _begin(folder, grid[0])
    assert claimed
    monkeypatch.setattr(attempts, "is_held", lambda _: claimed.end("failed", "out of memory"))
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).why) == ("failed", "out of memory")


@pytest.mark.parametrize("state", ["pruned", "failed", "waiting"])
def test_what_an_attempt_leaves_its_cell_as(folder, grid, state):
    claimed = _begin(folder, grid[0])
    assert claimed
    claimed.end(state, "for a reason")
    status = _stands(folder, grid[0])
    assert (status.state, status.why, status.done) == (state, "for a reason", state == "pruned")
    assert retry(folder, grid) == ([grid[0].key] if state == "failed" else [])
    assert _stands(folder, grid[0]).state == ("pruned" if state == "pruned" else "waiting")


def test_the_run_s_manifest_says_whether_it_has_finished(folder, grid):
    """Whatever the attempts say: a worker may be killed between the run's end and its own record."""
    claimed = _begin(folder, grid[0])
    assert claimed
    _finish(folder, grid[0])
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).results["last"]) == ("finished", 0.7)
    claimed.end("finished")
    (grid[0].run_folder(folder) / "manifest.json").unlink()
    assert _stands(folder, grid[0]).state == "waiting"  # its run was removed
    (grid[0].run_folder(folder) / "manifest.json").write_text("{")
    status = _stands(folder, grid[0])
    assert status.state == "failed" and status.why and "manifest.json is damaged" in status.why


def test_the_time_of_all_attempts_counts(folder, grid):
    (folder / "attempts").mkdir()
    began = time.time() - 5000
    for number, (state, seconds) in enumerate([("waiting", 40.0), ("running", 0.0), ("finished", 20.0)], 1):
        path = folder / "attempts" / f"{grid[0].key}.{number}.json"
        write_json(path, {"worker": "host:1", "began": began, "state": state, "seconds": seconds})
        os.utime(path, (began + 300, began + 300))  # the last sign of life of the second, which was killed
    _finish(folder, grid[0])
    assert _stands(folder, grid[0]).results["seconds"] == pytest.approx(360, abs=1)


def test_a_worker_of_another_machine_is_gone_after_its_silence(folder, grid, monkeypatch):
    """Also where its lock cannot be seen from here, as on file systems whose locks stay on one machine."""
    monkeypatch.setattr(attempts.socket, "gethostname", lambda: "elsewhere")
    claimed = _begin(folder, grid[0])
    assert claimed
    claimed.close()
    monkeypatch.undo()
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).attempts) == ("running", 1)
    path = folder / "attempts" / f"{grid[0].key}.1.json"
    past = time.time() - attempts.SILENCE_SECONDS - 1
    os.utime(path, (past, past))
    assert _stands(folder, grid[0]).state == "waiting"
    claimed.beat()
    assert _stands(folder, grid[0]).state == "running"
    assert claim(folder, grid[0].key, 2)
    with pytest.raises(Overtaken):
        claimed.beat()


def test_a_study_of_the_version_before_is_read_by_its_runs(tmp_path, folder, grid):
    """Its database is not needed: what has finished has finished, what failed failed, the rest waits."""
    write_specs(folder, [spec(tmp_path)])
    write_json(folder / "storage.json", {"kind": "sqlite", "study": "study-1a2b3c4d"})
    (folder / "optuna.db").write_bytes(b"SQLite format 3\0")
    (folder / "workers").mkdir()
    _finish(folder, grid[0])
    for cell, status in ((grid[1], "failed"), (grid[2], "stopped")):
        cell.run_folder(folder).mkdir(parents=True)
        about = {"status": status, "why": "out of memory"}
        write_json(cell.run_folder(folder) / "manifest.json", about)
    study = read_study(folder)
    states = [study.status[cell.key].state for cell in grid]
    assert states == ["finished", "failed", *["waiting"] * 9]
    assert study.status[grid[1].key].why == "out of memory"
    assert study.accuracy(grid[0].key) == 0.7
    assert retry(folder, grid) == [grid[1].key]
    assert _stands(folder, grid[1]).state == "waiting"


def test_a_study_that_cannot_be_written_can_be_read_and_is_refused_in_one_line(
    tmp_path, folder, grid, monkeypatch
):
    write_specs(folder, [spec(tmp_path)])
    before = sorted(folder.rglob("*"))
    assert {status.state for status in read_study(folder).status.values()} == {"waiting"}
    assert sorted(folder.rglob("*")) == before

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(attempts.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"or lock files in it \(No locks available\); make it writable"):
        _begin(folder, grid[0])
    assert list((folder / "attempts").iterdir()) == []


def test_a_torn_record_is_an_attempt_that_was_cut_short(folder, grid):
    (folder / "attempts").mkdir()
    (folder / "attempts" / f"{grid[0].key}.1.json").write_text(json.dumps({"worker": "host:1"})[:9])
    assert (_stands(folder, grid[0]).state, _stands(folder, grid[0]).attempts) == ("waiting", 1)
    assert _begin(folder, grid[0])
