"""Files that somebody else wrote: read only if they are files and of a sensible size.

To open a FIFO can wait for ever, and a device has no end; both may stand where a file is expected.
"""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20  # the largest manifest, of noise on 100 classes, has 80 kB


def regular_size(path: Path) -> int:
    """Bytes of a regular file. Raises OSError if it is missing or something else, such as a FIFO."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return status.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes. Raises OSError if it is missing, no file, larger."""
    size = regular_size(path)
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, at most {most} are sensible", str(path))
    return path.read_bytes()


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, nested too deeply included."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__} instead of an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError (see `read_bytes`) or ValueError (see `parse_json`)."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES))
