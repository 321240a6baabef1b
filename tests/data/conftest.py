"""Fixtures of the tests of loading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rmd_dist.data.dataset import Dataset, Samples, dataset_info
from rmd_dist.data.loader import Loader, build_loader
from rmd_dist.data.sources.beton import write_beton
from tests.data.batches import COUNT, GLOBAL, SEED, skip_without_ffcv


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """103 noise images of 32 x 32, in a beton and in memory at once."""
    random, info = np.random.default_rng(0), dataset_info("cifar10")
    samples = Samples(random.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), np.arange(COUNT) % 10)
    beton = write_beton(samples, info, "train", tmp_path_factory.mktemp("beton"))
    return Dataset(info, "train", samples.labels, beton, samples.images)


@pytest.fixture
def build(dataset: Dataset) -> Iterator[Callable[..., Loader]]:
    """build_loader with defaults; closes what it built, and sees that no thread is left."""
    before, built = set(threading.enumerate()), []

    def make(**options: Any) -> Loader:
        kind = options.pop("kind", "ffcv")
        if kind == "ffcv":
            skip_without_ffcv()
        only = {"ffcv": {"images": None}, "memory": {"beton": None}}[kind]
        defaults = {"augment": None, "batch_size": GLOBAL, "seed": SEED}
        data = replace(options.pop("dataset", dataset), **only)
        built.append(build_loader(data, **(defaults | options)))
        return built[-1]

    yield make
    for loader in built:
        loader.close()
    assert set(threading.enumerate()) <= before
