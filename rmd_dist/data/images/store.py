"""Images of varying sizes on disk: betons whose images are JPEGs or pixels, in shards, each a whole beton.

A beton of ffcv's format can hold 2^64 bytes, but its records must come before its images, and a reader
keeps 64 bytes a record. So a file ends at SHARD_IMAGES images (its records take 168 MB) or SHARD_BYTES, and
the next one begins: 10^8 images of 50 kB are 24 files of 210 GB.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.data.render.jpeg import decode_jpeg
from rmd_dist.data.sources.beton import (
    ALLOCATION,
    HASHED_BYTES,
    METADATA,
    METADATA_START,
    PAGE_SIZE,
    RAW,
    BetonHeader,
    beginning,
    beton_path,
    check_beton,
    ending,
)
from rmd_dist.errors import ConfigError, Fault

Bytes = npt.NDArray[np.uint8]

SHARD_IMAGES = 1 << 22
SHARD_BYTES = 1 << 40


def shard_path(root: Path, name: str, split: str, shard: int) -> Path:
    """Where a shard lives; the first is called as a beton of one file is."""
    return beton_path(root, name, split if shard == 0 else f"{split}.{shard}")


@dataclass
class ShardWriter:
    """Appends images to the shards of a split; what has been appended survives an interruption.

    Images come where the format wants them at once, records and table at the end (`finish`). An image never
    crosses a page, as ffcv's reader wants it.
    """

    folder: Path
    split: str
    room: int
    """Images that may come, for whose records there is to be room."""
    shard: int = 0
    count: int = 0
    """Of the shard."""
    end: int = 0
    """Of the shard, in bytes; 0: nothing is there yet."""
    shard_images: int = SHARD_IMAGES
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        self._file: Any = None

    @property
    def start(self) -> int:
        """Where the images of a shard begin."""
        records = METADATA_START + min(self.room, self.shard_images) * METADATA.itemsize
        return -(-records // PAGE_SIZE) * PAGE_SIZE

    def append(self, content: bytes) -> tuple[int, int]:
        """(shard, pointer) of an image of at most PAGE_SIZE bytes, which is now written."""
        if self._file is None:
            self._open()
        at = self.end
        if at % PAGE_SIZE + len(content) > PAGE_SIZE:
            at = -(-at // PAGE_SIZE) * PAGE_SIZE
        if self.count == self.shard_images or at + len(content) > self.shard_bytes:
            self.close()
            self.shard, self.count, self.end = self.shard + 1, 0, 0
            return self.append(content)
        if at != self.end:
            self._file.seek(at)
        self._file.write(content)
        self.count, self.end = self.count + 1, at + len(content)
        return self.shard, at

    def _open(self) -> None:
        path = self.path(self.shard)
        self.end = max(self.end, self.start)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(self.end)  # what came after the last record of an interrupted preparation
        self._file.seek(self.end)

    def path(self, shard: int) -> Path:
        """A shard while it is written."""
        return self.folder / f"{self.split}.{shard}.beton"

    def flush(self) -> None:
        """Put on the disk what was appended."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def finish(self, shard: int, images: npt.NDArray[np.void], sizes: Any, labels: Any) -> tuple[int, str]:
        """(bytes, hex SHA-256) of a shard that has these images (n,) of IMAGE and is whole now."""
        metadata = np.zeros(len(images), METADATA)
        metadata["image"], metadata["label"], metadata["index"] = images, labels, np.arange(len(images))
        pointers = images["data_ptr"].astype(np.int64)
        table = int(-(-int((pointers + sizes).max()) // PAGE_SIZE) * PAGE_SIZE)
        with self.path(shard).open("r+b") as file:
            file.write(beginning(metadata, table))
            file.truncate(table)
            file.seek(table)
            file.write(ending(pointers, np.asarray(sizes)))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            return table + len(images) * ALLOCATION.itemsize, hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """The images of a split, mapped; any number of threads may load at once."""

    def __init__(self, headers: Sequence[BetonHeader]) -> None:
        self.paths = [header.path for header in headers]
        self.labels = np.concatenate([header.labels for header in headers])
        self._images = np.concatenate([header.images for header in headers])
        self._pointers = np.concatenate([header.pointers for header in headers])
        self._sizes = np.concatenate([header.sizes for header in headers])
        self._shards = np.repeat(np.arange(len(headers)), [len(header) for header in headers])

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _maps(self) -> list[Bytes]:
        return [np.asarray(np.memmap(path, np.uint8, "r")) for path in self.paths]

    def load(self, sample: int) -> Bytes:
        """Image `sample`, (H, W, 3) RGB, as it was prepared. Raises Fault if it is damaged."""
        pointer, image = self._pointers[sample], self._images[sample]
        content = self._maps[self._shards[sample]][pointer : pointer + self._sizes[sample]]
        shape = (int(image["height"]), int(image["width"]), 3)
        if image["mode"] == RAW:
            raw: Bytes = content.reshape(shape)
            return raw
        try:
            pixels = decode_jpeg(content)
        except Exception as error:
            raise self._damaged(sample, str(error)) from error
        if pixels.shape != shape:
            raise self._damaged(sample, f"it has the shape {pixels.shape}")
        return pixels

    def _damaged(self, sample: int, why: str) -> Fault:
        path = self.paths[self._shards[sample]]
        return Fault(
            f"{path} is damaged: image {sample} cannot be decoded ({why}); delete it and prepare anew"
        )

    def records(self) -> npt.NDArray[np.void]:
        """(N,) of beton.IMAGE: mode, width, height and pointer in its shard."""
        return self._images


class Watch:
    """Looks whether mapped files are what they were: pages past the end of a file end a process by SIGBUS."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._files = [path.open("rb") for path in paths]
        self._status = [_size_and_time(file) for file in self._files]

    def check(self) -> None:
        """Fault if a file was cut or written to; one that was deleted or replaced lives on."""
        for path, file, before in zip(self._paths, self._files, self._status, strict=True):
            now = _size_and_time(file)
            if now != before:
                what = "cut" if now[0] < before[0] else "written to"
                raise Fault(
                    f"{path} was {what} under the running job ({before[0]} bytes, now {now[0]}); "
                    "delete it and give the same command again, which writes it anew"
                )

    def close(self) -> None:
        for file in self._files:
            file.close()


def _size_and_time(file: Any) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def open_shards(root: Path, name: str, split: str, hashed_bytes: int = HASHED_BYTES) -> list[BetonHeader]:
    """The checked shards of a split. Raises ConfigError if one is missing or damaged."""
    first = check_beton(shard_path(root, name, split, 0), hashed_bytes)
    count = first.manifest.get("shards", 1)
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"{first.path} has a damaged manifest (bad shards); delete it and prepare anew")
    others = [check_beton(shard_path(root, name, split, k), hashed_bytes) for k in range(1, count)]
    return [first, *others]
