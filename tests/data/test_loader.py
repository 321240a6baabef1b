"""The global order, the two sources, and the values that cannot work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.dataset import Dataset, dataset_info, load_samples
from rmd_dist.data.loader import Batch, Loader, build_loader
from rmd_dist.data.render.augment import Augmenter
from rmd_dist.data.sources.beton import write_beton
from rmd_dist.errors import ConfigError
from tests.data.batches import (
    COUNT,
    GLOBAL,
    KINDS,
    SEED,
    assert_equal,
    expected_batches,
    indices,
    pixels,
    read,
)

AUGMENTATIONS: list[Any] = [ViewConfig(), CropFlipConfig(), None]
NAMES = ["views", "crop", "plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_the_permutation_of_seed_and_epoch(build: Callable[..., Loader], kind: str) -> None:
    loader = build(kind=kind)
    assert len(loader) == COUNT // GLOBAL
    for epoch in (0, 1, 5, 0):
        assert indices(read(loader, epoch)) == expected_batches(np.arange(COUNT), epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_permuted_and_its_indices_are_kept(build: Callable[..., Loader], kind: str) -> None:
    chosen = np.arange(COUNT)[::-3]
    assert indices(read(build(kind=kind, indices=chosen), 3)) == expected_batches(chosen, 3)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_read_the_batches_of_one(build: Callable[..., Loader], kind: str, world: int) -> None:
    one = read(build(kind=kind, augment=ViewConfig()), 2)
    ranks = [
        read(build(kind=kind, augment=ViewConfig(), rank=r, world_size=world, workers=1 + r % 2), 2)
        for r in range(world)
    ]
    joined = [
        Batch(
            tuple(torch.cat(view) for view in zip(*(part.views for part in parts), strict=True)),
            torch.cat([part.index for part in parts]),
        )
        for parts in zip(*ranks, strict=True)
    ]
    assert_equal(joined, one)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_can_start_at_any_batch(build: Callable[..., Loader], kind: str) -> None:
    loader = build(kind=kind, augment=ViewConfig(), rank=1, world_size=5)  # shares of 2 and 3
    whole = read(loader, 4)
    for start in (1, 5, len(loader)):
        assert_equal(read(loader, 4, start), whole[start:])
    with pytest.raises(ValueError, match="batch"):
        read(loader, 4, len(loader) + 1)


@pytest.mark.parametrize(("world", "batch"), [(1, 40), (2, 25), (3, 200), (4, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_in_order_every_sample_comes_once(
    build: Callable[..., Loader], kind: str, world: int, batch: int
) -> None:
    seen: list[int] = []
    for rank in range(world):
        loader = build(kind=kind, shuffle=False, batch_size=batch, rank=rank, world_size=world)
        batches = indices(read(loader))
        assert len(batches) == len(loader)
        assert all(len(rows) == batch for rows in batches[:-1])
        seen += itertools.chain.from_iterable(batches)
    assert seen == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_samples_reads_nothing(build: Callable[..., Loader], kind: str) -> None:
    loader = build(kind=kind, shuffle=False, indices=np.array([5]), rank=0, world_size=3)
    assert len(loader) == 0 and read(loader) == []


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=NAMES)
def test_both_sources_give_the_same_bytes(build: Callable[..., Loader], augment: Any) -> None:
    orders: list[dict[str, Any]] = [{}, {"shuffle": False, "batch_size": 40}, {"rank": 1, "world_size": 5}]
    for options in orders:
        ffcv, memory = (build(kind=kind, augment=augment, workers=2, **options) for kind in KINDS)
        for epoch, start in ((0, 0), (6, 2)):
            assert_equal(read(ffcv, epoch, start), read(memory, epoch, start))


@pytest.mark.parametrize("kind", KINDS)
def test_digits_come_as_they_are(build: Callable[..., Loader], tmp_path: Path, kind: str) -> None:
    samples, info = load_samples("digits", "test", tmp_path), dataset_info("digits")
    data = Dataset(info, "test", samples.labels, write_beton(samples, info, "test", tmp_path), samples.images)
    batches = read(build(dataset=data, kind=kind, shuffle=False, batch_size=100))
    assert batches[0].views[0].shape == (100, 16, 16, 3)
    np.testing.assert_array_equal(torch.cat([b.views[0] for b in batches]).numpy(), samples.images)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_an_epoch_always_looks_the_same(
    build: Callable[..., Loader], kind: str, augment: Any
) -> None:
    whole = pixels(read(build(kind=kind, augment=augment, shuffle=False), 3))
    assert len(whole) == COUNT
    for options, start in (
        ({"batch_size": 50, "workers": 3}, 0),
        ({"batch_size": 7, "world_size": 3, "rank": 2}, 4),
        ({"indices": np.arange(90, 30, -2)}, 1),
    ):
        some = pixels(read(build(kind=kind, augment=augment, **options), 3, start))
        assert some and all(whole[index] == look for index, look in some.items())
    if augment is not None:
        other = pixels(read(build(kind=kind, augment=augment, shuffle=False), 4))
        assert np.mean([whole[index] == other[index] for index in whole]) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_batches_stay_as_they_are_after_later_ones(build: Callable[..., Loader], kind: str) -> None:
    kept, copies = [], []
    for batch in build(kind=kind, augment=ViewConfig(), batches_ahead=1).epoch(0):
        kept.append(batch)
        copies.append(Batch(tuple(view.clone() for view in batch.views), batch.index.clone()))
    assert_equal(kept, copies)
    assert all(view.is_contiguous() and view.dtype == torch.uint8 for b in kept for view in b.views)


def test_a_batch_moves_with_its_index() -> None:
    batch = Batch((torch.zeros(2, 4, 4, 3, dtype=torch.uint8),), torch.arange(2)).to("meta")
    assert batch.views[0].device.type == batch.index.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_read_where_they_lie(
    build: Callable[..., Loader], dataset: Dataset, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mapped file or in the given array, without a copy, and read-only."""
    sources: list[np.ndarray] = []
    render = Augmenter.render

    def spy(self: Augmenter, data: np.ndarray, *args: Any) -> torch.Tensor:
        sources.append(data)
        return render(self, data, *args)

    monkeypatch.setattr(Augmenter, "render", spy)
    next(build(kind=kind).epoch(0))
    data = sources[0]
    assert not data.flags.writeable and type(data) is np.ndarray
    if kind == "memory":
        assert dataset.images is not None and np.shares_memory(data, dataset.images)
        assert dataset.images.flags.writeable
    else:
        assert isinstance(data.base, np.memmap) and data.base.mode == "r"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2, "world_size": 3}, "batch_size is 2"),
        ({"batch_size": COUNT + 1}, "there are 103 samples"),
        ({"workers": 0}, "workers is 0"),
        ({"batches_ahead": 0}, "batches_ahead is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"augment": ViewConfig(hue=2.0)}, "hue is 2.0"),
    ],
)
def test_values_that_cannot_work_are_named(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"augment": None, "batch_size": GLOBAL, "seed": SEED}
    with pytest.raises(ConfigError, match=message):
        build_loader(replace(dataset, beton=None), **(defaults | options))


@pytest.mark.parametrize("wrong", [[-1, 3], [0, COUNT]])
def test_indices_out_of_range_are_refused(dataset: Dataset, wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="the data set has 0 to 102"):
        build_loader(
            replace(dataset, beton=None), augment=None, batch_size=2, seed=0, indices=np.array(wrong)
        )


def test_a_data_set_without_pixels_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="neither a beton nor images"):
        build_loader(replace(dataset, beton=None, images=None), augment=None, batch_size=2)
