"""A run that goes on in the midst of an epoch on another number of ranks."""

from __future__ import annotations

import pytest

from tests.faults.reshape import BOUNDS, differences


@pytest.mark.parametrize(("stage", "plan"), [("pretrain", "2 -> 1"), ("distill", "1 -> 2 -> 1")])
def test_a_run_goes_on_with_another_number_of_ranks(stage, plan, ranks, tmp_path):
    """In double precision: nothing but rounding is between it and an uninterrupted run on one rank."""
    found = differences(stage, "fp64", tmp_path, ranks, [plan])
    assert 0 < found[plan] < BOUNDS["fp64"]
