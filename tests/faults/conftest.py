"""One nursery for all tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks ranks; see nursery.py."""
    with Nursery() as made:
        yield made
