"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import TIMEOUT, Pool, World


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="device of tests/gpu; default: a GPU, if any")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Parameters that have no CPU form are left out there."""
    if config.getoption("--device") == "cpu":
        for item in items:
            if item.get_closest_marker("cuda_alone"):
                item.add_marker(pytest.mark.skip(reason="has no CPU form"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., World]]:
    """`ranks(3).run(function, *args)` runs a function on 3 gloo ranks; see tests/distributed/pool.py."""
    pool = Pool()
    yield lambda size, timeout=TIMEOUT: World(pool, size, timeout)
    pool.close()
