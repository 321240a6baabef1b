"""Betons: ffcv's file format (version 2), written and checked without ffcv.

The layout is that of ffcv 1.0.2 (`ffcv/types.py`); a test holds it against ffcv's own writer, byte for
byte. Writing it here takes one process and one pass: ffcv's writer hangs when a worker fails, leaves
shared memory behind when killed, and gives other bytes with several workers. ffcv's reader takes most
damage without a word, so `check_beton` looks at a file before anybody maps it.

    header | 3 field descriptors | N metadata records | padding | pages of raw images | allocation table
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rmd_dist import __version__
from rmd_dist.data.sources.base import DatasetInfo, Samples
from rmd_dist.errors import ConfigError
from rmd_dist.files import atomic_path, read_json, regular_size, remove_debris, to_json

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much (0: not known)."""

MANIFEST_VERSION = 1
BETON_VERSION = 2
PAGE_SIZE = 2 << 20  # the least that ffcv allows
HASHED_BYTES = 1 << 30
"""Largest beton that is read whole whenever it is opened; a larger one only by `rmd prepare`."""
JPEG, RAW = 0, 1  # ffcv's codes of how an image is stored

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
FIELDS = np.array([(2, b"image", b""), (1, b"label", b""), (1, b"index", b"")], dtype=FIELD)
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8"), ("index", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
METADATA_START = HEADER.itemsize + FIELDS.nbytes


@dataclass(frozen=True)
class BetonHeader:
    """A checked beton, without its pixels."""

    path: Path
    image_size: int
    """Height and width in pixels; 0: each image has its own."""
    labels: npt.NDArray[np.int64]
    """(N,), in the order of the file; the sample with index i is record i. -1: none."""
    pointers: npt.NDArray[np.int64]
    """(N,), where in the file each image starts."""
    sizes: npt.NDArray[np.int64]
    """(N,), its bytes: H * W * 3 where it is stored as pixels."""
    images: npt.NDArray[np.void]
    """(N,) of IMAGE: its mode (RAW or JPEG), width and height."""
    manifest: dict[str, Any]
    """The JSON beside it."""

    def __len__(self) -> int:
        return len(self.labels)


def beton_path(root: Path, name: str, split: str) -> Path:
    """Where the beton of a split lives; its manifest has the suffix .json instead."""
    return Path(root) / f"{name}_{split}.beton"


def write_beton(
    samples: Samples, info: DatasetInfo, split: str, root: Path, progress: Progress | None = None
) -> Path:
    """Write `root/NAME_SPLIT.beton` and its manifest; the same samples give the same bytes.

    The beton gets its name last, after it and its manifest are on the disk: a build that was killed
    leaves no beton. An existing one is never overwritten (ConfigError). Callers that may run at the
    same time hold the lock of `prepare`.
    """
    path = beton_path(root, info.name, split)
    if path.exists():
        raise ConfigError(f"{path} exists and is not overwritten; delete it first to write it again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        remove_debris(path.parent, path.stem)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for done, block in _blocks(samples):
                file.write(block)
                digest.update(block)
                if progress and done:
                    progress(path.name, done, len(samples.labels))
            manifest = {
                "format": MANIFEST_VERSION,
                "dataset": info.name,
                "split": split,
                "classes": list(info.classes),
                "count": len(samples.labels),
                "image_size": samples.images.shape[1],
                "source": samples.source,
                "source_sha256": samples.source_sha256,
                "samples_sha256": samples.sha256(),
                "beton_bytes": file.tell(),
                "beton_sha256": digest.hexdigest(),
                "versions": {"rmd_dist": __version__, "beton": BETON_VERSION, "numpy": np.__version__},
            }
            with atomic_path(path.with_suffix(".json")) as beside:
                beside.write_text(to_json(manifest, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}; make room or choose another folder") from error
    return path


def _blocks(samples: Samples) -> Iterator[tuple[int, bytes]]:
    """The parts of the file in order, each with the images that are done with it (0: not counted)."""
    count, height, width, _ = samples.images.shape
    size = height * width * 3
    if height != width or size > PAGE_SIZE:
        raise ConfigError(f"images of {height} x {width} pixels: must be square and fit {PAGE_SIZE} bytes")
    per_page = PAGE_SIZE // size
    metadata_end = METADATA_START + count * METADATA.itemsize
    data_start = -(-metadata_end // PAGE_SIZE) * PAGE_SIZE
    page, slot = np.divmod(np.arange(count), per_page)
    pointers = data_start + page * PAGE_SIZE + slot * size

    metadata = np.zeros(count, METADATA)
    metadata["image"]["mode"], metadata["image"]["data_ptr"] = RAW, pointers
    metadata["image"]["height"], metadata["image"]["width"] = height, width
    metadata["label"], metadata["index"] = samples.labels, np.arange(count)
    table = data_start + -(-count // per_page) * PAGE_SIZE
    yield 0, beginning(metadata, table) + bytes(data_start - metadata_end)

    for first in range(0, count, per_page):
        images = samples.images[first : first + per_page]
        yield first + len(images), images.tobytes().ljust(PAGE_SIZE, b"\0")

    yield 0, ending(pointers, np.full(count, size))


def beginning(metadata: npt.NDArray[np.void], table: int) -> bytes:
    """Header, fields and records (N,) of METADATA, of a file whose allocation table is at `table`."""
    header = np.zeros((), HEADER)
    header["version"], header["num_fields"], header["page_size"] = BETON_VERSION, len(FIELDS), PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = len(metadata), table
    return header.tobytes() + FIELDS.tobytes() + metadata.tobytes()


def ending(pointers: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> bytes:
    """The allocation table of images that lie at `pointers` (N,) and have `sizes` (N,) bytes."""
    allocations = np.zeros(len(pointers), ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(len(pointers)), pointers
    allocations["size"] = sizes
    return allocations.tobytes()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the beton `path`. Raises ConfigError when it is missing or no manifest."""
    beside = path.with_suffix(".json")
    try:
        manifest = read_json(beside)
        if manifest["format"] != MANIFEST_VERSION:
            raise ValueError(f"format {manifest['format']}, this version reads {MANIFEST_VERSION}")
        wrong = [key for key, kind in _MANIFEST_TYPES.items() if type(manifest[key]) is not kind]
        if wrong:
            raise ValueError(f"bad {', '.join(wrong)}")
    except FileNotFoundError:
        raise damaged(path, f"has no manifest {beside.name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"has a damaged manifest {beside.name} ({error!s:.100})") from error
    return manifest


_MANIFEST_TYPES = {
    "dataset": str,
    "split": str,
    "classes": list,
    "count": int,
    "image_size": int,
    "source": str,
    "source_sha256": str,
    "samples_sha256": str,
    "beton_bytes": int,
    "beton_sha256": str,
}

_VERIFIED: dict[Path, tuple[object, ...]] = {}  # what each file looked like when its SHA-256 was found right


def check_beton(path: Path, hashed_bytes: int = HASHED_BYTES) -> BetonHeader:
    """Verify a beton against its manifest and its own structure, before anybody maps it.

    The SHA-256 is computed once per process and file (again when size or time have changed), of a file of
    at most `hashed_bytes`. Raises ConfigError, naming the file and the remedy, for anything that ffcv would
    silently read as garbage.
    """
    manifest = read_manifest(path)
    try:
        regular_size(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size != manifest["beton_bytes"]:
                raise damaged(path, f"has {status.st_size} bytes, {manifest['beton_bytes']} in its manifest")
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, manifest["beton_sha256"])
            if status.st_size <= hashed_bytes and _VERIFIED.get(path.resolve()) != seen:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["beton_sha256"]:
                    raise damaged(path, "does not have the SHA-256 of its manifest")
                _VERIFIED[path.resolve()] = seen
            file.seek(0)
            return _parse(path, file, status.st_size, manifest)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; rmd prepare writes it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _parse(path: Path, file: BinaryIO, size: int, manifest: dict[str, Any]) -> BetonHeader:
    """Header, metadata and allocation table, each checked before the next is trusted."""
    if size < METADATA_START:
        raise damaged(path, "is shorter than a header")
    header = np.fromfile(file, HEADER, 1)[0]
    count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    fields = np.fromfile(file, FIELD, len(FIELDS))
    if [*header.item()[:3], fields.tobytes()] != [BETON_VERSION, len(FIELDS), PAGE_SIZE, FIELDS.tobytes()]:
        raise damaged(path, f"is no beton of version {BETON_VERSION} with image, label and index")
    if count < 1 or count != manifest["count"]:
        raise damaged(path, f"has {count} samples, {manifest['count']} in its manifest")
    if not METADATA_START + count * METADATA.itemsize <= table == size - count * ALLOCATION.itemsize:
        raise damaged(path, "is cut short or was never finished")
    metadata = np.fromfile(file, METADATA, count)
    file.seek(table)
    allocations = np.fromfile(file, ALLOCATION, count)

    image, labels = metadata["image"], metadata["label"].astype(np.int64)
    side, classes = manifest["image_size"], len(manifest["classes"])
    pointers, sizes = image["data_ptr"].astype(np.int64), allocations["size"].astype(np.int64)
    pixels = image["width"].astype(np.int64) * image["height"] * 3
    first, order = METADATA_START + count * METADATA.itemsize, np.arange(count)
    modes, least = ((RAW,), 0) if side else ((RAW, JPEG), 0 if classes else -1)
    sound = {
        "compressed images": np.all(np.isin(image["mode"], modes)),
        "images of another size": not side or np.all((image["width"] == side) & (image["height"] == side)),
        "images without pixels": pixels.min() > 0,
        "labels out of range": labels.min() >= least and labels.max() < max(classes, least + 1),
        "indices out of order": np.array_equal(metadata["index"], order),
        "images outside the data": pointers.min() >= first
        and np.all(np.where(image["mode"] == RAW, pixels, 1) <= table - pointers),
        "a wrong allocation table": np.array_equal(allocations["sample_id"], order)
        and np.array_equal(allocations["ptr"], image["data_ptr"])
        and np.all((sizes == pixels) | (image["mode"] == JPEG))
        and np.all((sizes > 0) & (sizes <= table - pointers)),
    }
    for what, fine in sound.items():
        if not fine:
            raise damaged(path, f"has {what}")
    return BetonHeader(path, side, labels, pointers, sizes, image.copy(), manifest)


def read_images(header: BetonHeader) -> npt.NDArray[np.uint8]:
    """All images of a checked beton, (N, H, W, 3), copied into memory."""
    mapped = np.asarray(np.memmap(header.path, np.uint8, "r"))
    side = header.image_size
    images = np.empty((len(header), side * side * 3), np.uint8)
    for row, pointer in zip(images, header.pointers.tolist(), strict=True):
        row[:] = mapped[pointer : pointer + images.shape[1]]
    return images.reshape(-1, side, side, 3)


def damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path} {what}; delete it and run rmd prepare, which writes it anew")
