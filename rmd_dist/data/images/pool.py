"""Files worked on by several processes, in order; a file that kills its process is skipped, not the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rmd_dist.data.images.work import Done, StoreOptions, end_with_parent, work

CHUNK = 32  # files handed to a process at once
FEW = 256  # files that are not worth starting processes for


def worked_on(root: Path, paths: Sequence[bytes], options: StoreOptions, processes: int) -> Iterator[Done]:
    """What has become of each of `paths` below `root`, in their order; 0 processes: one for each core."""
    processes = processes or len(os.sched_getaffinity(0))
    home = os.fsencode(root)
    chunks = [list(paths[k : k + CHUNK]) for k in range(0, len(paths), CHUNK)]
    if len(paths) <= FEW or processes <= 1:
        for chunk in chunks:
            yield from work(home, chunk, options)
        return
    first = 0
    while first < len(chunks):
        try:
            for done in _ahead(home, chunks[first:], options, processes):
                yield from done
                first += 1
        except BrokenProcessPool:
            yield from _one_by_one(home, chunks[first], options)
            first += 1


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not forked: the process that prepares may have threads, of torch or of a progress bar.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=end_with_parent)


def _submit(
    pool: ProcessPoolExecutor, home: bytes, paths: list[bytes], options: StoreOptions
) -> Future[list[Done]]:
    """Ctrl-C is the parent's affair: processes that start meanwhile have it blocked for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(work, home, paths, options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ahead(
    home: bytes, chunks: Sequence[list[bytes]], options: StoreOptions, processes: int
) -> Iterator[list[Done]]:
    """Results in order, while the processes have three chunks each to do."""
    pool = _pool(processes)
    try:
        pending: deque[Future[list[Done]]] = deque()
        for chunk in chunks:
            pending.append(_submit(pool, home, chunk, options))
            if len(pending) > 3 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_by_one(home: bytes, paths: Sequence[bytes], options: StoreOptions) -> Iterator[Done]:
    """Each file by itself, to find the one that ends its process."""
    pool = _pool(1)
    try:
        for path in paths:
            try:
                yield _submit(pool, home, [path], options).result()[0]
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(1)
                yield Done("its decoder ended the process that read it")
    finally:
        pool.shutdown()
