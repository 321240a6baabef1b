"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import TIMEOUT, Pool, World


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., World]]:
    """`ranks(3).run(function, *args)` runs a function on 3 gloo ranks; see tests/distributed/pool.py."""
    pool = Pool()
    yield lambda size, timeout=TIMEOUT: World(pool, size, timeout)
    pool.close()
