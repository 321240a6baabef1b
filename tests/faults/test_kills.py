"""A short campaign of kills; `python -m tests.faults.kills --kills 100` is the long one."""

from __future__ import annotations

import time
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from tests.faults.kills import EVERY, campaign
from tests.launched import is_alive
from tests.tiny import words

CHOSEN = [
    ("start-up", "both"),
    ("save", "both"),
    ("evaluation", "rank 0"),
    ("save", "rank 1"),
    ("any", "both"),
    ("end", "both"),
]


@pytest.mark.timeout(240)
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(nursery, tmp_path):
    kills, _, wrong = campaign(nursery, tmp_path, iter(CHOSEN * 9), seed=3, kills=len(CHOSEN), steps=14)
    assert wrong == []
    assert any(kill.save for kill in kills), kills
    assert all(kill.alone and kill.lost <= 2 * EVERY for kill in kills), kills


def test_ranks_of_a_nursery_that_is_gone_are_gone(tmp_path):
    """Whatever ends the tests: no orphan trains on."""
    from tests.faults.nursery import Nursery

    own = Nursery()
    try:
        job = own.start(
            "distill", words("distill", tmp_path, "--epochs", "99"), ranks=1, output=tmp_path / "o"
        )
        own._process.send_signal(SIGKILL)
        deadline = time.monotonic() + 20
        while is_alive(job.pids[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(job.pids[0])
    finally:
        own.close()


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_rank_that_waits_for_another_one_at_the_start_can_be_stopped(number, nursery, tmp_path):
    """Launchers grant 30 s; a handler would not be called before the wait ends, after minutes."""
    job = nursery.start("distill", words("distill", tmp_path), ranks=2, output=tmp_path / "output")
    try:
        job.signal(1, SIGKILL)  # long before the two have met
        time.sleep(4)
        assert job.codes() == [None, -SIGKILL]
        job.signal(None, number)
        assert job.wait(5) and job.codes() == [-number, -SIGKILL]
    finally:
        job.signal(None, SIGKILL)
    assert not (tmp_path / "distill").exists()
