"""Threads of the loader: several at once, errors in them, and every way to leave one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rmd_dist.config import ViewConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.loader import Loader
from rmd_dist.data.render.augment import Augmenter
from tests.data.batches import COUNT, KINDS, assert_equal, expected_batches, read, skip_without_ffcv


@pytest.mark.parametrize("kind", KINDS)
def test_loaders_and_epochs_can_be_read_at_the_same_time(build: Callable[..., Loader], kind: str) -> None:
    train = build(kind=kind, augment=ViewConfig(), workers=2)
    test = build(kind=kind, augment=None, workers=2)
    alone = [read(train, 0), read(train, 1), read(test, 0)]
    together = list(zip(train.epoch(0), train.epoch(1), test.epoch(0), strict=True))
    for number, batches in enumerate(alone):
        assert_equal([row[number] for row in together], batches)


class Broken(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_the_loader_thread_reaches_the_consumer(
    build: Callable[..., Loader], kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, bad = (
        build(kind=kind, workers=workers, batch_size=40),
        expected_batches(np.arange(COUNT), 0)[0][0],
    )
    kernel = loader._augmenter._kernel

    def failing(data: Any, pointers: Any, samples: np.ndarray, first: int, last: int, *rest: Any) -> None:
        if bad in samples[first:last] and rest[1] == 1:
            raise Broken(f"sample {bad}")
        kernel(data, pointers, samples, first, last, *rest)

    monkeypatch.setattr(loader._augmenter, "_kernel", failing)
    monkeypatch.setattr(loader._augmenter, "_least", 8)
    start = time.monotonic()
    with pytest.raises(Broken, match=f"sample {bad}"):
        read(loader, 1)
    assert time.monotonic() - start < 5.0
    assert len(read(loader, 0)) == len(loader)  # and the loader still serves other epochs


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_just_ends_is_no_hang(
    build: Callable[..., Loader], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit

    loader = build(kind=kind)
    monkeypatch.setattr(loader._augmenter, "_kernel", leave)
    with pytest.raises(SystemExit):
        next(loader.epoch(0))


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_early_ends_the_thread(build: Callable[..., Loader], kind: str) -> None:
    loader, before = build(kind=kind, batches_ahead=1), set(threading.enumerate())
    for leave in ("break", "close", "error", "drop", "last"):
        batches = loader.epoch(0)
        next(batches)
        assert len(set(threading.enumerate()) - before) == 1
        if leave == "close":
            batches.close()  # type: ignore[attr-defined]
        elif leave == "error":
            with pytest.raises(Broken):
                batches.throw(Broken())  # type: ignore[attr-defined]
        elif leave == "last":  # the thread waits for room to say that it has finished
            for _ in range(len(loader) - 2):
                next(batches)
            time.sleep(0.1)
        del batches
        assert set(threading.enumerate()) == before, leave


@pytest.mark.parametrize("kind", KINDS)
def test_closing_a_loader_ends_its_epochs(build: Callable[..., Loader], kind: str) -> None:
    with build(kind=kind, batches_ahead=1) as loader:
        batches = loader.epoch(0)
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        list(batches)
    with pytest.raises(RuntimeError, match="closed"):
        read(loader)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_may_end_in_the_middle_of_an_epoch(dataset: Dataset, kind: str) -> None:
    """A thread frozen at exit inside C++ code would abort the process."""
    if kind == "ffcv":
        skip_without_ffcv()
    code = f"""
import numpy as np
from pathlib import Path
from rmd_dist.config import ViewConfig
from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.loader import build_loader
beton, images = Path({str(dataset.beton)!r}), np.zeros(({COUNT}, 32, 32, 3), np.uint8)
pixels = {{"ffcv": {{"beton": beton}}, "memory": {{"images": images}}}}[{kind!r}]
data = Dataset(dataset_info("cifar10"), "train", np.zeros({COUNT}, np.int64), **pixels)
kept = build_loader(data, augment=ViewConfig(), batch_size=4, seed=0, workers=2).epoch(0)
next(kept)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_few_batches_are_made_ahead(
    build: Callable[..., Loader], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    render = Augmenter.render
    monkeypatch.setattr(Augmenter, "render", lambda *args: made.append(1) or render(*args))
    batches = build(kind=kind, batch_size=2, batches_ahead=2).epoch(0)
    for taken in range(1, 6):
        next(batches)
        time.sleep(0.1)
        assert taken <= len(made) <= taken + 3
