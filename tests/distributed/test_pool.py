"""The pool of ranks itself: results in rank order, tracebacks, hangs, and life after a failure."""

from __future__ import annotations

import os
import time

import pytest

from rmd_dist.parallel import collectives as dist
from tests.distributed.pool import RankError


def _who(offset: int) -> tuple[int, int, int, int]:
    return offset, dist.rank(), dist.world_size(), os.getpid()


def _raise_on(rank: int) -> None:
    if dist.rank() == rank:
        raise LookupError("broken on purpose")
    dist.barrier()


def _hang_on(rank: int) -> None:
    if dist.rank() == rank:
        time.sleep(3600)


def _die_on(rank: int) -> None:
    if dist.rank() == rank:
        os._exit(7)


def _argument(x: str) -> str:
    return f"{x}{dist.rank()}"


def test_results_in_rank_order_and_processes_reused(ranks):
    first = ranks(3).run(_who, 5)
    assert [r[:3] for r in first] == [(5, 0, 3), (5, 1, 3), (5, 2, 3)]
    assert [r[3] for r in ranks(2).run(_who, 0)] == [r[3] for r in first[:2]]
    assert ranks(1).run(_who, 0)[0][:3] == (0, 0, 1)
    assert ranks(2).run_each(_argument, [("a",), ("b",)]) == ["a0", "b1"]


def test_failures_are_reported_and_survived(ranks):
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2.*LookupError: broken on purpose"):
        ranks(2).run(_raise_on, 1)
    with pytest.raises(RankError, match=r"no answer from ranks \[0, 1\]"):  # 1 waits for 0 to leave
        ranks(2, timeout=3).run(_hang_on, 0)
    with pytest.raises(RankError, match=r"rank 1 of 2:\nthe process died, exit code 7"):
        ranks(2).run(_die_on, 1)
    assert [r[1] for r in ranks(2).run(_who, 0)] == [0, 1]
