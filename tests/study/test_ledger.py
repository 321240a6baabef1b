"""The ledger: every cell claimed once, by whoever; what is lost, failed or cut short comes back."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from rmd_dist.config import ConfigError
from rmd_dist.study import ledger as module
from rmd_dist.study.ledger import Ledger
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


def test_entering_again_adds_what_is_new_and_refuses_what_has_changed(tmp_path):
    ledger, keys = _entered(tmp_path)
    assert ledger.enter(cells(tmp_path)) == 0
    assert ledger.enter(cells(tmp_path, SPEC.replace("[0, 1]", "[0, 1, 2]"))) == 5
    with pytest.raises(ConfigError, match=r"other settings of 10 cells, such as digits-ce-none-K0-seed0"):
        ledger.enter(cells(tmp_path, SPEC.replace("lr: 0.1", "lr: 0.2")))
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


def test_a_storage_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is not known; give sqlite, journal, or a URL"):
        Ledger(_folder(tmp_path), "nowhere")
    with pytest.raises(ConfigError, match="cannot open the study's storage mysql"):
        Ledger(_folder(tmp_path), "mysql+absent://localhost/x")
