"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

import rmd_dist  # noqa: F401  # before any test loads torch: how long OpenMP's threads spin
from tests.distributed.pool import TIMEOUT, Pool, World
from tests.faults.nursery import Nursery

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell leaves it to what it starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and so do the processes of tests hear it

QUICK = 20.0
"""Seconds of CPU time, of its processes too, that a test may take which is not marked `slow`."""

PROCESSES = {"ranks", "nursery"}
"""Fixtures that keep processes for a whole session; what uses them is slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="device of tests/gpu; default: a GPU, if any")


def _keeps_processes(item: pytest.Item) -> bool:
    return not PROCESSES.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_itemcollected(item: pytest.Item) -> None:
    if _keeps_processes(item):
        item.add_marker("slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that need such processes come first, and so to one worker of several: each starts its own."""
    items.sort(key=lambda item: not _keeps_processes(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Tests of `make check` stay quick; in CPU time, which other processes do not prolong."""
    before = sum(os.times()[:4])
    outcome = yield
    taken = sum(os.times()[:4]) - before
    if taken > QUICK and not item.get_closest_marker("slow"):
        pytest.fail(f"took {taken:.0f} s of CPU time: make it quicker, or mark it slow")
    return outcome


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., World]]:
    """`ranks(3).run(function, *args)` runs a function on 3 gloo ranks; see tests/distributed/pool.py."""
    pool = Pool()
    yield lambda size, timeout=TIMEOUT: World(pool, size, timeout)
    pool.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks the ranks of a run; see tests/faults/nursery.py."""
    with Nursery() as made:
        yield made
