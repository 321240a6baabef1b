"""Batches in the global order: uint8 views and sample indices.

    build_loader -> Loader.epoch(e, start_batch) -> Batch(views, index) -> .to(device) -> Preprocess

The order is a function of (seed, epoch) and the pixels of (seed, epoch, sample, view), so that any
number of ranks, workers and restarts sees the same batches. Two sources give the same bytes: `ffcv`
reads a mapped beton, `memory` an array. Labels are looked up by index: clean or noisy, they are arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.images.store import Store, Watch
from rmd_dist.data.prefetch import Ints, Reader, Rendered, ThreadReader, consume
from rmd_dist.data.render.augment import AugmentConfig, Augmenter
from rmd_dist.data.render.device import DeviceAugmenter
from rmd_dist.data.render.pixels import Bytes
from rmd_dist.data.render.rng import permutation
from rmd_dist.data.render.varied import VariedAugmenter
from rmd_dist.data.sources.beton import check_beton
from rmd_dist.errors import ConfigError
from rmd_dist.parallel import share, share_sizes

AnyAugmenter = Augmenter | VariedAugmenter | DeviceAugmenter

RESIDENT_BATCH = 4096
"""Images that are read at a time where a device is to keep all."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch; its tensors belong to whoever holds it."""

    views: tuple[Tensor, ...]
    """Each uint8 (b, S, S, 3): the views of one size, then the same views of the next."""
    index: Tensor
    """int64 (b,), data set indices."""
    taught: Tensor | None = None
    """(b, D), a teacher's features of the first view, where they lie in a table."""
    drawn: Tensor | None = None
    """(V, b, F), what decides the views, where a device is yet to render them (`Loader.rendered`)."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        others = (self.taught, self.drawn)
        return (*self.views, self.index, *(tensor for tensor in others if tensor is not None))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `function` applied to each tensor."""
        taught, drawn = (None if t is None else function(t) for t in (self.taught, self.drawn))
        return Batch(tuple(function(view) for view in self.views), function(self.index), taught, drawn)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; the copy does not wait where memory is pinned."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


class Table(Protocol):
    """What is known of each sample in each epoch, beside its pixels."""

    def rows(self, samples: Ints, epoch: int) -> Tensor:
        """(b, D), of the data set indices `samples` (b,)."""

    def close(self) -> None:
        """Let go of its file."""


@dataclass(frozen=True)
class Order:
    """Which samples a rank reads, batch by batch."""

    indices: Ints
    """Data set indices (n,)."""
    batch_size: int
    """Shuffled: of a batch over all ranks. In order: of a batch of one rank."""
    seed: int
    shuffle: bool
    rank: int
    world_size: int

    @property
    def rank_batch(self) -> int:
        """Samples of one batch on this rank."""
        if not self.shuffle:
            return self.batch_size
        return share_sizes(self.batch_size, self.world_size)[self.rank]

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        if self.shuffle:
            return len(self.indices) // self.batch_size
        return -(-share_sizes(len(self.indices), self.world_size)[self.rank] // self.batch_size)

    @property
    def most_batches(self) -> int:
        """Batches of one epoch on the rank that has most; known to every rank."""
        if self.shuffle:
            return len(self)
        return -(-max(share_sizes(len(self.indices), self.world_size)) // self.batch_size)

    def rows(self, epoch: int, start_batch: int = 0) -> Ints:
        """This rank's samples from `start_batch` on, (m,); its batches are runs of `rank_batch` of them.

        Shuffled: one permutation per (seed, epoch), cut to whole batches; every rank takes its share of
        each batch. In order: every rank takes its share of the whole list, and the last batch is short.
        """
        if self.shuffle:
            order = self.indices[permutation(len(self.indices), self.seed, epoch)]
            batches = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
            return batches[start_batch:, share(self.batch_size, self.rank, self.world_size)].reshape(-1)
        own = self.indices[share(len(self.indices), self.rank, self.world_size)]
        return own[start_batch * self.batch_size :]


class PixelSource(Protocol):
    """Where pixels come from."""

    def read(self, rows: Ints, epoch: int) -> Reader:
        """Start reading the data set indices `rows` (n,), at least one, in this order."""

    def close(self) -> None:
        """Let go of what is open, after the last reader has stopped."""


class ThreadSource(ABC):
    """Batches of `batch_size` rows, made ahead in a thread of each pass; what they hold, `make` says."""

    def __init__(self, batch_size: int, ahead: int) -> None:
        self._batch_size, self._ahead = batch_size, ahead

    @abstractmethod
    def make(self, samples: Ints, epoch: int) -> tuple[Tensor, ...]:
        """What a batch of data set indices (b,) brings of each view; called in the thread."""

    def close(self) -> None:  # noqa: B027 - for those who have something open
        """Let go of what is open, after the last reader has stopped."""

    def read(self, rows: Ints, epoch: int) -> Reader:
        """Start reading the data set indices `rows` (n,) in this order."""

        def render(samples: Ints) -> Rendered:
            return self.make(samples, epoch), torch.from_numpy(samples.copy())

        starts = range(0, len(rows), self._batch_size)
        return ThreadReader(render, [rows[s : s + self._batch_size] for s in starts], self._ahead)


class MemorySource(ThreadSource):
    """Views of images (N, S, S, 3) uint8, which are neither copied nor written to."""

    def __init__(self, images: Bytes, augmenter: Augmenter, batch_size: int, ahead: int) -> None:
        super().__init__(batch_size, ahead)
        self._data = np.ascontiguousarray(images).reshape(-1)
        self._data.flags.writeable = False  # as a mapped beton is: both run the same compiled code
        self._augmenter = augmenter

    def make(self, samples: Ints, epoch: int) -> tuple[Tensor, ...]:
        stride = 3 * self._augmenter.size**2
        return self._augmenter.render(self._data, samples * stride, samples, epoch).unbind(0)


class VariedSource(ThreadSource):
    """Views of images that each have a size of their own: `load(sample)` gives (H, W, 3) uint8.

    `watch`: of the files that they are mapped from.
    """

    def __init__(
        self,
        load: Callable[[int], Bytes],
        augmenter: VariedAugmenter,
        batch_size: int,
        ahead: int,
        watch: Watch | None,
    ) -> None:
        super().__init__(batch_size, ahead)
        self._load, self._augmenter, self._watch = load, augmenter, watch

    def make(self, samples: Ints, epoch: int) -> tuple[Tensor, ...]:
        if self._watch is not None:
            self._watch.check()
        return self._augmenter.render(self._load, samples, epoch)

    def close(self) -> None:
        """Let go of the files that are watched."""
        if self._watch is not None:
            self._watch.close()


class DrawnSource(ThreadSource):
    """What decides the views, in the place of views: a device is to render them."""

    def __init__(self, augmenter: DeviceAugmenter, batch_size: int, ahead: int) -> None:
        super().__init__(batch_size, ahead)
        self._augmenter = augmenter

    def make(self, samples: Ints, epoch: int) -> tuple[Tensor, ...]:
        return (self._augmenter.draw(samples, epoch),)


class Loader:
    """Epochs of batches; made by `build_loader`. Also a context manager that closes it."""

    def __init__(
        self,
        order: Order,
        source: PixelSource,
        augmenter: AnyAugmenter,
        pinned: bool,
        taught: Table | None,
    ) -> None:
        self._order, self._source, self._augmenter, self._pinned = order, source, augmenter, pinned
        self._taught = taught
        self._readers: set[Reader] = set()
        self._closed = False

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        return len(self._order)

    @property
    def most_batches(self) -> int:
        """Batches of one epoch on the rank that has most."""
        return self._order.most_batches

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from number `start_batch` on; several epochs may be read at the same time.

        Batches are prepared ahead from the first `next` on. An error in the preparing thread is raised
        here. Leaving the iterator early (break, an exception, close) ends its thread.
        """
        if self._closed:
            raise RuntimeError("this loader is closed")
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(f"epoch {epoch}, batch {start_batch}: there are batches 0 to {len(self)}")
        rows = self._order.rows(epoch, start_batch)
        if not len(rows):
            return
        reader = self._source.read(rows, epoch)
        self._readers.add(reader)
        try:
            for pixels, index in consume(reader):
                taught = self._taught.rows(index.numpy(), epoch) if self._taught else None
                if self._pinned:
                    index, taught = index.pin_memory(), None if taught is None else taught.pin_memory()
                on_device = isinstance(self._augmenter, DeviceAugmenter)
                views, drawn = ((), pixels[0]) if on_device else (tuple(pixels), None)
                yield Batch(views, index, taught, drawn)
        finally:
            self._readers.discard(reader)

    def rendered(self, batch: Batch) -> Batch:
        """`batch`, which is on the device, with its views, where the device is to render them."""
        if batch.drawn is None:
            return batch
        assert isinstance(self._augmenter, DeviceAugmenter)
        return replace(batch, views=self._augmenter.render(batch.index, batch.drawn), drawn=None)

    def close(self) -> None:
        """End all threads; unfinished epochs raise RuntimeError at their next batch."""
        self._closed = True
        for reader in list(self._readers):
            reader.stop()
        self._source.close()
        self._augmenter.close()
        if self._taught is not None:
            self._taught.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def build_loader(
    dataset: Dataset,
    *,
    augment: AugmentConfig,
    batch_size: int,
    seed: int = 0,
    indices: Ints | None = None,
    shuffle: bool = True,
    rank: int | None = None,
    world_size: int | None = None,
    workers: int = 1,
    batches_ahead: int = 3,
    pinned: bool = False,
    sizes: tuple[int, ...] | None = None,
    crop_pct: float | None = None,
    taught: Table | None = None,
    device: torch.device | None = None,
) -> Loader:
    """A loader of this rank's part of `dataset`, or of its subset `indices` (int64, any order).

    Pixels come from the beton if the data set has one, else from memory. `sizes`: of the views, in pixels;
    each view comes in every size, from the same crop (default: the data set's `image_size`). Images that are
    stored at the one size that is asked for are shifted and copied, others cropped and resized;
    `crop_pct` (default: the data set's) is the share of the shorter side that an evaluation's crop has.
    `taught`: what batches bring along of it; the loader closes it. `device`: keep all images there and have
    `Loader.rendered` make their views there; None: threads make them, and batches bring them along.

    shuffle=True: for training; `batch_size` counts all ranks, incomplete batches are left out.
    shuffle=False: for evaluation; in order, nothing left out, padded or twice, `batch_size` is each
    rank's, and ranks may differ by one batch. `rank` and `world_size` are the process's unless given,
    `workers` its threads. `pinned`: batches in
    page-locked memory, for a CUDA device. Memory: batches_ahead + 2 batches. Raises ConfigError for values
    that cannot work, ValueError for indices out of range.
    """
    rank = parallel.rank() if rank is None else rank
    world_size = parallel.world_size() if world_size is None else world_size
    count = len(dataset.labels)
    chosen = np.arange(count) if indices is None else np.ascontiguousarray(indices, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= count):
        raise ValueError(f"indices from {chosen.min()} to {chosen.max()}; the data set has 0 to {count - 1}")
    for name, value in (("workers", workers), ("batches_ahead", batches_ahead)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; at least 1 is needed")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; allowed is 0 to 2**63 - 1")
    least = world_size if shuffle else 1
    if batch_size < least:
        raise ConfigError(f"batch_size is {batch_size}; {world_size} rank(s) need at least {least}")
    if shuffle and batch_size > len(chosen):
        raise ConfigError(
            f"batch_size is {batch_size}, but there are {len(chosen)} samples; choose a smaller batch_size"
        )
    order = Order(chosen, batch_size, seed, shuffle, rank, world_size)
    chosen_sizes = sizes or (dataset.info.image_size,)
    fixed = dataset.store is None and chosen_sizes == (dataset.info.image_size,)
    augmenter: AnyAugmenter
    if device is not None:
        if not fixed or augment is None:
            raise ConfigError(
                "data.render = device makes random views of images of one size as they are; leave it out for "
                "own images and for another --image-size"
            )
        images = _resident(dataset, device, workers)
        augmenter = DeviceAugmenter(images, augment, seed=seed, pinned=pinned)
    elif fixed:
        augmenter = Augmenter(augment, size=chosen_sizes[0], seed=seed, workers=workers, pinned=pinned)
    else:
        augmenter = VariedAugmenter(
            augment, sizes=chosen_sizes, seed=seed, workers=workers, pinned=pinned,
            crop_pct=dataset.info.crop_pct if crop_pct is None else crop_pct,
        )  # fmt: skip
    source = _open(dataset, augmenter, order.rank_batch, batches_ahead)
    return Loader(order, source, augmenter, pinned, taught)


def _resident(dataset: Dataset, device: torch.device, workers: int) -> Tensor:
    """All images of a data set of one size, on a device: uint8 (N, S, S, 3)."""
    plain = build_loader(
        dataset, augment=None, batch_size=RESIDENT_BATCH, shuffle=False, rank=0, world_size=1, workers=workers
    )
    with plain:
        return torch.cat([batch.views[0].to(device) for batch in plain.epoch(0)])


def _open(dataset: Dataset, augmenter: AnyAugmenter, batch_size: int, ahead: int) -> PixelSource:
    if isinstance(augmenter, DeviceAugmenter):
        return DrawnSource(augmenter, batch_size, ahead)
    if isinstance(augmenter, VariedAugmenter):
        return _open_varied(dataset, augmenter, batch_size, ahead)
    if dataset.beton is not None:
        from rmd_dist.data.sources.ffcv import FfcvSource

        return FfcvSource(dataset.beton, augmenter, batch_size, ahead)
    if dataset.images is None:
        raise ValueError(f"{dataset.info.name} {dataset.split} has neither a beton nor images")
    return MemorySource(dataset.images, augmenter, batch_size, ahead)


def _open_varied(dataset: Dataset, augmenter: VariedAugmenter, batch_size: int, ahead: int) -> PixelSource:
    if dataset.images is not None:
        return VariedSource(dataset.images.__getitem__, augmenter, batch_size, ahead, None)
    store = dataset.store or Store([check_beton(dataset.beton)] if dataset.beton else [])
    if dataset.beton is None:
        return VariedSource(store.load, augmenter, batch_size, ahead, Watch(store.paths))
    from rmd_dist.data.sources.ffcv import VariedFfcvSource

    return VariedFfcvSource(store, augmenter, batch_size, ahead)
