"""Batches from a beton through ffcv's loader, without ffcv's own just-in-time compilation.

ffcv compiles a pipeline anew in every process, 11 to 19 seconds at the first batch. Here the decoders are
plain Python functions that call this package's cached kernels, and ffcv's compiler is off while its
loader is built, so that the first batch comes in milliseconds. ffcv maps the file, reads its tables and
runs the thread that works ahead.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba.typed
import numpy as np
import torch

from rmd_dist.data.images.store import Store, Watch
from rmd_dist.data.prefetch import Ints, Reader, Rendered, StopReading, stop_thread
from rmd_dist.data.render.augment import Augmenter
from rmd_dist.data.render.varied import VariedAugmenter
from rmd_dist.data.sources.beton import RAW, check_beton
from rmd_dist.errors import ConfigError


@functools.cache
def _ffcv() -> Any:
    """The ffcv package; ConfigError when it, or a library that it needs, is missing.

    Importing it and each of its loaders' threads set torch's and numba's thread counts for the whole
    process; that is undone and switched off. It also fills a typed dictionary of two names at import,
    for which numba compiles for three seconds; a plain one serves.
    """
    threads, typed_dict = torch.get_num_threads(), numba.typed.Dict
    numba.typed.Dict = dict
    try:
        ffcv = importlib.import_module("ffcv")
        compiler = importlib.import_module("ffcv.pipeline.compiler").Compiler
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"ffcv cannot be imported ({error}); run scripts/install-system.sh and `pip install ffcv`, "
            "or do without it by --loader memory"
        ) from error
    finally:
        numba.typed.Dict = typed_dict
        torch.set_num_threads(threads)
    compiler.set_num_threads = lambda n: setattr(compiler, "num_threads", n)
    return ffcv


class _Decoder:
    """An ffcv operation that turns records of one field into a batch by a plain function.

    ffcv asks for these methods by name only. No memory is requested from it: its buffers are reused
    after a few batches, what these functions return belongs to the consumer.
    """

    def __init__(self, decode: Callable[[Ints, None, Any, Any], Any]) -> None:
        self._decode = decode

    def accept_field(self, field: Any) -> None:
        """Nothing of the field's description is needed."""

    def accept_globals(self, metadata: Any, memory_read: Any) -> None:
        """Both come with every call as well."""

    def declare_state_and_memory(self, state: Any) -> tuple[Any, None]:
        return state, None

    def declare_shared_memory(self, _state: Any) -> None:
        return None

    def generate_code_for_shared_state(self) -> None:
        return None

    def generate_code(self) -> Callable[[Ints, None, Any, Any], Any]:
        return self._decode


@functools.cache
def _reader_class() -> Any:
    _ffcv()
    base: Any = importlib.import_module("ffcv.loader.epoch_iterator").EpochIterator

    class FfcvReader(base):  # type: ignore[misc]
        """ffcv's iterator over given rows, which keeps its error, ends when told to, and knows its epoch."""

        def __init__(self, loader: Any, rows: Ints, epoch: int) -> None:
            self.error: BaseException | None = None
            self._epoch = epoch
            super().__init__(loader, rows)

        def start(self) -> None:  # called at the end of the constructor
            mapped, *_ = self.memory_context.state
            self.storage_state = (np.asarray(mapped), self._epoch)
            super().start()

        def run(self) -> None:
            try:
                super().run()
            except StopReading:
                pass
            except BaseException as error:  # handed to the consumer, who raises it
                self.error = error

        def run_pipeline(self, *args: Any) -> Any:
            if self.terminate_event.is_set():
                raise StopReading
            return super().run_pipeline(*args)

        def take(self, timeout: float) -> Rendered | None:
            item = self.output_queue.get(timeout=timeout) if timeout else self.output_queue.get_nowait()
            return None if item is None else item[1]

        def stop(self) -> None:
            stop_thread(self, self.terminate_event, self.output_queue)

    return FfcvReader


class FfcvSource:
    """Reads rows of a checked beton (fields image, label, index) in batches of `batch_size`.

    Images of one size are rendered by an `Augmenter` from the pages that ffcv has mapped.
    """

    def __init__(self, beton: Path, augmenter: Augmenter, batch_size: int, ahead: int) -> None:
        # Once more: evaluations open it while the run goes on. Quick as long as it is the same.
        check_beton(beton)
        self._augmenter, self._watch = augmenter, Watch([beton])
        self._loader = _loader(beton, self._decode_images, _decode_index, batch_size, ahead)
        self._check(beton)

    def _check(self, beton: Path) -> None:
        """The kernels read where the table points to, so every image must lie inside and have the size."""
        table = self._loader.reader.metadata[f"f{self._loader.field_name_to_f_ix['image']}"]
        size = self._augmenter.size
        same = (table["mode"] == RAW) & (table["width"] == size) & (table["height"] == size)
        last = beton.stat().st_size - 3 * size * size
        if not (same & (table["data_ptr"] <= np.uint64(max(last, 0)))).all() or last < 0:
            raise ConfigError(f"{beton} holds no raw {size} x {size} images; delete it and run rmd prepare")

    def _decode_images(self, samples: Ints, _memory: None, metadata: Any, storage: Any) -> Any:
        self._watch.check()
        data, epoch = storage
        pointers = metadata["data_ptr"][samples].astype(np.int64)
        return self._augmenter.render(data, pointers, samples, epoch).unbind(0)

    def close(self) -> None:
        """Let go of the file that is watched."""
        self._watch.close()

    def read(self, rows: Ints, epoch: int) -> Reader:
        """Start reading the data set indices `rows` (n,), at least one, in this order."""
        reader: Reader = _reader_class()(self._loader, rows, epoch)
        return reader


class VariedFfcvSource:
    """Reads rows of betons whose images each have a size of their own, of any number of shards.

    ffcv maps the first shard and runs the thread; what a row is, the store knows.
    """

    def __init__(self, store: Store, augmenter: VariedAugmenter, batch_size: int, ahead: int) -> None:
        self._store, self._augmenter, self._watch = store, augmenter, Watch(store.paths)
        self._loader = _loader(store.paths[0], self._decode_images, _rows, batch_size, ahead)

    def _decode_images(self, samples: Ints, _memory: None, _metadata: Any, storage: Any) -> Any:
        self._watch.check()
        _, epoch = storage
        return self._augmenter.render(self._store.load, samples, epoch)

    def close(self) -> None:
        """Let go of the files that are watched."""
        self._watch.close()

    def read(self, rows: Ints, epoch: int) -> Reader:
        """Start reading the data set indices `rows` (n,), at least one, in this order."""
        reader: Reader = _reader_class()(self._loader, rows, epoch)
        return reader


def _loader(
    beton: Path, images: Callable[..., Any], index: Callable[..., Any], batch_size: int, ahead: int
) -> Any:
    """ffcv's loader of a beton with these functions as decoders."""
    ffcv = _ffcv()
    spec = importlib.import_module("ffcv.pipeline").PipelineSpec
    compiler = importlib.import_module("ffcv.pipeline.compiler").Compiler
    was_enabled = compiler.is_enabled
    compiler.set_enabled(False)
    try:
        return ffcv.Loader(
            str(beton),
            batch_size=batch_size,
            num_workers=1,  # threads are the augmenter's
            os_cache=True,
            drop_last=False,
            batches_ahead=ahead,
            pipelines={
                "image": spec("image", decoder=_Decoder(images)),
                "label": None,
                "index": spec("index", decoder=_Decoder(index)),
            },
        )
    finally:
        compiler.set_enabled(was_enabled)


def _rows(samples: Ints, _memory: None, _metadata: Any, _storage: Any) -> torch.Tensor:
    return torch.from_numpy(samples.astype(np.int64))


def _decode_index(samples: Ints, _memory: None, metadata: Any, _storage: Any) -> torch.Tensor:
    return torch.from_numpy(metadata[samples].astype(np.int64))
