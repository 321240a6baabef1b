"""The ledger: every cell claimed once, by whoever; what is lost, failed or cut short comes back."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from rmd_dist.config import ConfigError
from rmd_dist.faults import Fault
from rmd_dist.study import ledger as module
from rmd_dist.study.ledger import Ledger, read_status
from tests.study.small import SPEC, cells

STORAGES = ("sqlite", "journal")


def _claim_all(folder: Path, storage: str, keys: list[str], out: str) -> None:
    ledger = Ledger(folder, storage)
    while claim := ledger.claim(keys):
        with Path(out).open("a") as file:
            file.write(f"{claim.key}\n")
        ledger.finish(claim, 0.5, {"last": 0.5})


@pytest.mark.parametrize("storage", STORAGES)
def test_two_processes_never_run_a_cell_twice(tmp_path, storage):
    grid = cells(tmp_path)
    keys = [cell.key for cell in grid]
    Ledger(_folder(tmp_path), storage).enter(grid)
    context = multiprocessing.get_context("spawn")
    outs = [str(tmp_path / f"out{i}") for i in range(2)]
    crew = [context.Process(target=_claim_all, args=(_folder(tmp_path), storage, keys, out)) for out in outs]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
        assert process.exitcode == 0
    claimed = Counter(line for out in outs if Path(out).exists() for line in Path(out).read_text().split())
    assert claimed == Counter(keys)
    assert {s.state for s in Ledger(_folder(tmp_path)).status().values()} == {"finished"}


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    return folder


def _entered(tmp_path: Path) -> tuple[Ledger, list[str]]:
    ledger, grid = Ledger(_folder(tmp_path)), cells(tmp_path)
    assert ledger.enter(grid) == len(grid)
    return ledger, [cell.key for cell in grid]


def test_entering_again_adds_what_is_new(tmp_path):
    ledger, keys = _entered(tmp_path)
    assert ledger.enter(cells(tmp_path)) == 0
    assert ledger.enter(cells(tmp_path, SPEC.replace("[0, 1]", "[0, 1, 2]"))) == 5
    assert len(ledger.status()) == len(keys) + 5


def test_a_duplicate_that_two_workers_entered_is_never_claimed(tmp_path):
    ledger, keys = _entered(tmp_path)
    ledger._enqueue(keys[0], "twin")
    first = ledger.claim(keys[:1])
    assert first
    assert ledger.claim(keys[:1]) is None
    ledger.finish(first, 0.7, {"last": 0.7})
    assert ledger.claim(keys[:1]) is None
    assert ledger.status()[keys[0]].results == {"last": 0.7}


def test_failed_cells_wait_only_when_asked(tmp_path):
    ledger, keys = _entered(tmp_path)
    claim = ledger.claim(keys)
    assert claim
    ledger.fail(claim, "out of memory")
    assert (ledger.status()[claim.key].state, ledger.status()[claim.key].why) == ("failed", "out of memory")
    assert ledger.claim([claim.key]) is None
    assert ledger.retry(keys) == [claim.key]
    assert ledger.claim([claim.key])
    assert ledger.status()[claim.key].attempts == 2


def test_what_was_cut_short_waits_again(tmp_path):
    ledger, keys = _entered(tmp_path)
    claim = ledger.claim(keys)
    assert claim
    ledger.report(claim, 22, 0.3)
    assert ledger.status()[claim.key].intermediate == {22: 0.3}
    ledger.give_back(claim, "the study was stopped")
    assert ledger.status()[claim.key].state == "waiting"
    assert ledger.claim([claim.key])


def _claim_and_die(folder: Path, key: str) -> None:
    Ledger(folder).claim([key])
    os._exit(9)


def test_cells_of_a_dead_worker_come_back_and_those_of_a_live_one_do_not(tmp_path):
    ledger, keys = _entered(tmp_path)
    mine = ledger.claim(keys[:1])
    assert mine
    process = multiprocessing.get_context("spawn").Process(
        target=_claim_and_die, args=(ledger.folder, keys[1])
    )
    process.start()
    process.join(60)
    other = Ledger(ledger.folder)
    assert other.recover() == [keys[1]]
    states = other.status()
    assert (states[keys[0]].state, states[keys[1]].state) == ("running", "waiting")
    ledger.close()
    assert other.recover() == [keys[0]]


def test_a_worker_on_another_machine_is_lost_after_its_silence(tmp_path, monkeypatch):
    ledger, keys = _entered(tmp_path)
    ledger.worker = "elsewhere:1:abc"
    assert ledger.claim(keys[:1])
    other = Ledger(ledger.folder)
    assert other.recover() == []
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + module.SILENCE_SECONDS + 1)
    assert other.recover() == keys[:1]


def test_a_cell_taken_for_lost_is_nobody_s_to_record_twice(tmp_path, monkeypatch):
    ledger, keys = _entered(tmp_path)
    claim = ledger.claim(keys[:1])
    assert claim
    monkeypatch.setattr(Ledger, "_gone", lambda *_: True)
    assert Ledger(ledger.folder).recover() == keys[:1]
    for act in (ledger.beat, lambda c: ledger.finish(c, 0.5, {})):
        with pytest.raises(UpdateFinishedTrialError):
            act(claim)


def test_a_worker_killed_between_giving_back_and_ending_leaves_no_failure(tmp_path, monkeypatch):
    ledger, keys = _entered(tmp_path)
    claim = ledger.claim(keys[:1])
    assert claim
    monkeypatch.setattr(Ledger, "_end", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ledger.give_back(claim, "the study was stopped")
    monkeypatch.undo()
    ledger.close()
    other = Ledger(ledger.folder)
    other.recover()
    assert other.status()[claim.key].state == "waiting"
    assert other.claim(keys[:1])
    assert other.claim(keys[:1]) is None


def _open(folder: Path) -> None:
    Ledger(folder)


def test_several_may_open_a_new_study_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=_open, args=(_folder(tmp_path),)) for _ in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
    assert [process.exitcode for process in crew] == [0, 0, 0]


def test_a_study_may_move_and_two_of_one_name_share_nothing(tmp_path):
    ledger, keys = _entered(tmp_path)
    moved = ledger.folder.rename(tmp_path / "a place? of its own")
    assert set(read_status(moved)) == set(keys)
    assert {path.name for path in tmp_path.iterdir()} == {moved.name, "small.yaml"}
    assert read_status(tmp_path / "study") == {}
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for place in ("a", "b"):
        (tmp_path / place / "study").mkdir(parents=True)
    Ledger(tmp_path / "a/study", url).enter(cells(tmp_path))
    assert len(Ledger(tmp_path / "a/study", url).status()) == len(keys)
    assert Ledger(tmp_path / "b/study", url).status() == {}


def test_a_study_keeps_to_its_storage(tmp_path):
    folder = _folder(tmp_path)
    Ledger(folder, "journal").enter(cells(tmp_path))
    assert len(Ledger(folder).status()) == 11
    with pytest.raises(ConfigError, match=r"keeps its ledger in another storage \(journal\) than sqlite"):
        Ledger(folder, "sqlite")
    (tmp_path / "other").mkdir()
    Ledger(tmp_path / "other", f"sqlite:///{tmp_path / 'shared.db'}")
    with pytest.raises(ConfigError, match="in a database; give its URL by --storage"):
        Ledger(tmp_path / "other")


def test_calls_are_tried_again_while_the_storage_is_away(tmp_path, monkeypatch):
    ledger, keys = _entered(tmp_path)
    real, away = ledger._storage.storage.get_all_trials, [StorageInternalError("locked")] * 2

    def sometimes(*args: object, **kwargs: object) -> object:
        if away:
            raise away.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(ledger._storage.storage, "get_all_trials", sometimes)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    assert len(ledger.status()) == len(keys)
    away += [StorageInternalError("locked")] * 9
    monkeypatch.setattr(module, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(Fault, match="the study's storage cannot be reached: locked"):
        ledger.status()


def test_a_storage_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is not known; give sqlite, journal, or a URL"):
        Ledger(_folder(tmp_path), "nowhere")
    with pytest.raises(ConfigError, match=r"cannot open the study's storage \(mysql"):
        Ledger(_folder(tmp_path), "mysql+absent://localhost/x")
