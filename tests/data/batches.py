"""What the tests of loading share: the data set's shape, the order by its definition, comparisons."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from rmd_dist.data.loader import Batch, Loader

COUNT, GLOBAL, SEED = 103, 12, 7
KINDS = ("ffcv", "memory")


def skip_without_ffcv() -> None:
    """Unlike pytest.importorskip this does not import it, which would set torch to one thread."""
    if importlib.util.find_spec("ffcv") is None:
        pytest.skip("ffcv is not installed")


def read(loader: Loader, epoch: int = 0, start: int = 0) -> list[Batch]:
    return list(loader.epoch(epoch, start))


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def pixels(batches: list[Batch]) -> dict[int, bytes]:
    """Sample index -> the bytes of all its views."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            found[index] = b"".join(view[row].numpy().tobytes() for view in batch.views)
    return found


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert indices(ours) == indices(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.views) == len(b.views)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def expected_batches(chosen: np.ndarray, epoch: int) -> list[list[int]]:
    """The formula of contract 1 (docs/architecture.md), apart from rmd_dist."""
    generator = np.random.Generator(np.random.Philox(key=np.array([SEED, epoch], np.uint64)))
    order = chosen[generator.permutation(len(chosen))]
    return [order[k : k + GLOBAL].tolist() for k in range(0, len(order) - GLOBAL + 1, GLOBAL)]
