"""A run that goes on in the midst of an epoch on another number of ranks."""

from __future__ import annotations

import pytest

from tests.faults.reshape import BOUND, differences


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_a_run_goes_on_with_another_number_of_ranks(stage, ranks, tmp_path):
    """Off by no more than ranks are from each other in an uninterrupted run."""
    found = differences(stage, tmp_path, ranks)
    assert set(found) == {"1 -> 2", "2 -> 1", "1 -> 2 -> 1", "2 throughout"}
    assert all(0 < value < BOUND for value in found.values()), found
