"""What is done with each file of a preparation, in other processes: read, hash, decode, make smaller."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rmd_dist.data.images.read import Unreadable, read_image
from rmd_dist.data.render.jpeg import encode_jpeg
from rmd_dist.data.sources.beton import JPEG, RAW
from rmd_dist.errors import ConfigError

MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class StoreOptions:
    """How images are stored; another choice gives other pixels."""

    store_size: int = 256
    """Shorter side at most, in pixels; an image is never enlarged."""
    longest: int = 1024
    """Longer side at most."""
    raw_bytes: int = 1 << 16
    """Images of at most so many bytes are stored as pixels, larger ones as JPEG."""
    quality: int = 95
    """Of JPEG."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Red, green and blue under transparent images."""

    def __post_init__(self) -> None:
        if not 8 <= self.store_size <= 512:
            raise ConfigError(f"store-size = {self.store_size} is out of range; allowed: 8 to 512 pixels")
        if not 0 <= self.raw_bytes <= 1 << 20:
            raise ConfigError(f"raw-bytes = {self.raw_bytes} is out of range; allowed: 0 to 1048576")

    @classmethod
    def of(cls, stored: Any) -> StoreOptions:
        """Those that a manifest tells, or where they cannot be the usual ones."""
        try:
            known = {key: stored[key] for key in ("store_size", "longest", "background")}
            return cls(**known | {"background": tuple(map(int, known["background"]))})
        except (KeyError, TypeError, ValueError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self) | {"background": list(self.background)}


class Done(NamedTuple):
    """A file that has been worked on; `reason` says why it cannot be used, "" if it can."""

    reason: str
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    """Of the file's image, upright."""
    stored_width: int = 0
    stored_height: int = 0
    mode: int = 0
    content: bytes = b""
    notes: tuple[str, ...] = ()
    sums: tuple[int, ...] = (0,) * 6
    """Over the stored pixels: of each colour, and of each colour's square."""


def end_with_parent() -> None:
    """End this process when its parent has ended, however: a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(root: bytes, paths: list[bytes], options: StoreOptions) -> list[Done]:
    """What has become of the files `paths` below `root`; nothing about a file raises."""
    return [_work(os.path.join(root, path), options) for path in paths]  # noqa: PTH118


def _work(path: bytes, options: StoreOptions) -> Done:
    try:
        size = os.stat(path).st_size  # noqa: PTH116
        if size > MAX_FILE_BYTES:
            return Done(f"has {size} bytes; at most {MAX_FILE_BYTES} are read")
        content = Path(os.fsdecode(path)).read_bytes()
    except FileNotFoundError:
        return Done("does not exist")
    except OSError as error:
        return Done(f"cannot be read: {error.strerror}")
    try:
        image = read_image(
            content, shorter=options.store_size, longer=options.longest, background=options.background
        )
    except Unreadable as error:
        return Done(str(error), hashlib.sha256(content).digest())
    pixels = image.pixels
    height, width, _ = pixels.shape
    mode = RAW if pixels.size <= options.raw_bytes else JPEG
    kept = pixels.tobytes() if mode == RAW else encode_jpeg(pixels, options.quality)
    counts = np.array(Image.fromarray(pixels).histogram()).reshape(3, 256)  # of each value of each colour
    values = np.arange(256)
    sums = [*(counts @ values), *(counts @ values**2)]
    digest = hashlib.sha256(content).digest()
    return Done(
        "", digest, image.width, image.height, width, height, mode, kept, image.notes, tuple(map(int, sums))
    )
