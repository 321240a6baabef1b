"""Faults made for real on forked ranks: one line that tells, the exit code, no process and no debris left.

`python -m tests.faults.table` makes all of them by the commands that a user types. Those that need no process
of their own are in tests/engine/test_start.py.
"""

from __future__ import annotations

import pytest

from tests.faults.scene import Unavailable, scene
from tests.faults.table import FAULTS

QUICK = ("full", "read-only-start", "kill-1", "kill-0", "raise", "loader", "term", "second")
SOON = 15.0  # seconds until no process may be left, on a loaded machine


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", QUICK)
def test_a_fault(name, nursery, tmp_path):
    fault = FAULTS[name]
    try:
        with scene(tmp_path / "scene", nursery) as at:
            outcome = fault.happen(at)
    except Unavailable as why:
        pytest.skip(str(why))
    assert fault.complaints(outcome, launched=False) == [], outcome.text
    assert outcome.seconds < SOON
